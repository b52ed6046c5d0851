"""The losses, as pure functions of per-token log-probabilities (nats, float32). No model, no settings, no logger.

d = logπ − logπ_ref of a token. Each returns one number per item (pair, response), to be summed by the caller and
divided by the whole batch's count, so that neither micro-batches nor processes change the result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from allo_engine.masking.selection import count_of

NOISE = 1e-4
"""Nats below which two float32 log-ratios are not told apart."""


def sft(logps_T: Tensor) -> Tensor:
    """Cross-entropy of one response, −Σ_t logπ_t: scalar. Divide by the batch's response tokens."""
    return -logps_T.sum()


def dpo(chosen_d: Tensor, rejected_d: Tensor, beta: float) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7) of pairs: −logσ(β(Σd_chosen − Σd_rejected)), of summed log-ratios, same shape."""
    return -logsigmoid(beta * (chosen_d - rejected_d))


def filtered_dpo(
    chosen_d_T: Tensor, rejected_d_T: Tensor, beta: float, ratio: float, both_sides: bool = False, dpop: float = 0.0
) -> Tensor:
    """ALLO's improvement loss of one pair: DPO with only the ⌈ratio·R⌉ rejected tokens of lowest d; scalar.

    R is the rejected response's own length. With `both_sides` the chosen response counts by its tokens of highest d in
    the same way. The choice of tokens carries no gradient. ratio = 1 is DPO. `dpop` weighs what the whole chosen
    response has lost.
    """
    chosen_d_K = chosen_d_T[lowest(-chosen_d_T, ratio)] if both_sides else chosen_d_T
    chosen_d = chosen_d_K.sum() - dpop * lost(chosen_d_T)
    return dpo(chosen_d, rejected_d_T[lowest(rejected_d_T, ratio)].sum(), beta)


def lost(chosen_d_T: Tensor) -> Tensor:
    """max(0, −Σd), by how much less likely a response is than under the reference: scalar. DPOP (arXiv 2402.13228)
    takes it from the chosen log-ratio, times its λ.

    Before the first step Σd is 0 up to rounding: what is below NOISE has no gradient either.
    """
    total = chosen_d_T.sum()
    return torch.where(total < -NOISE, -total, 0.0)


def mean_nll(logps_T: Tensor) -> Tensor:
    """−Σ_t logπ_t / T of one response: scalar (arXiv 2404.19733 has it beside the loss of the pair)."""
    return -logps_T.mean()


def lowest(d_T: Tensor, ratio: float) -> Tensor:
    """Places of the ⌈ratio·R⌉ ≥ 1 lowest values of d, the earlier one where two are equal; shape [k].

    Before the first step every d is 0 up to rounding, so what differs by less than NOISE is equal: the choice must not
    be one of how tokens were packed.
    """
    return torch.argsort((d_T.detach() / NOISE).round(), stable=True)[: max(1, count_of(ratio, len(d_T)))]


def token_npo(logps_T: Tensor, reference_T: Tensor, weights_T: Tensor, beta: float) -> Tensor:
    """Token-weighted NPO of one response: −Σ_t w_t·logσ(−β(logπ_t − logπ_ref,t)); scalar.

    Divide by the batch's number of non-zero weights (ALLO's forgetting loss).
    """
    return -(weights_T * logsigmoid(-beta * (logps_T - reference_T))).sum()


def simnpo(logps_T: Tensor, weights_T: Tensor, beta: float, gamma: float) -> Tensor:
    """SimNPO (arXiv 2410.07163, eq. 4) of one response, its mean taken over weighted tokens: scalar.

    −(2/β)·logσ(−β·Σ_t w_t·logπ_t / Σ_t w_t − γ). Without a weighted token it is 0. Divide by the number of responses
    that have one.
    """
    mean = (weights_T * logps_T).sum() / weights_T.sum().clamp(min=torch.finfo(weights_T.dtype).tiny)
    return -2 / beta * logsigmoid(-beta * mean - gamma) * weights_T.any()
