"""Log-probabilities of tokens from hidden states and the head's weight, without ever holding all logits.

The logits of R positions are R·V numbers, as many again for their softmax and their gradients: at a vocabulary of 49 k
these outweigh a small model's activations. So a few positions go through the head at a time; what is kept for the
backward pass is the hidden states and a log-sum a position, and the logits are computed a second time, unless they are
few.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from allo_engine.model.memory import HEAD_CHUNK_BYTES, HEAD_CHUNK_BYTES_ELSEWHERE, HEAD_KEPT_BYTES


class TokenLogps(torch.autograd.Function):
    """logπ[r] = logits[r, target[r]] − log Σ exp logits[r], logits = hidden·weightᵀ + bias; float32 [R], in nats."""

    @staticmethod
    def forward(ctx: Any, hidden_RH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_R: Tensor) -> Tensor:
        logps_R: Tensor = hidden_RH.new_empty(len(targets_R), dtype=torch.float32)
        sums_R = torch.empty_like(logps_R)
        size = 4 * len(targets_R) * len(weight_VH)
        few = any(ctx.needs_input_grad) and size <= HEAD_KEPT_BYTES
        kept_RV = logps_R.new_empty(len(targets_R), len(weight_VH)) if few else None
        for part in _chunks(hidden_RH, weight_VH):  # the same pieces, kept or not, so that the same bits come of them
            logits = _logits(hidden_RH[part], weight_VH, bias_V, None if kept_RV is None else kept_RV[part])
            sums_R[part] = logits.logsumexp(-1)
            logps_R[part] = logits.gather(1, targets_R[part, None])[:, 0] - sums_R[part]
        ctx.save_for_backward(hidden_RH, weight_VH, bias_V, targets_R, sums_R, kept_RV)
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """∂logπ[r]/∂logits[r] = 1[target[r]] − softmax; the weight's gradient is summed over chunks in float32."""
        hidden_RH, weight_VH, bias_V, targets_R, sums_R, kept_RV = ctx.saved_tensors
        _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_hidden_RH = torch.empty_like(hidden_RH)
        grad_weight_VH = None
        grad_bias_V = torch.zeros_like(bias_V) if wants_bias else None
        for part in _chunks(hidden_RH, weight_VH) if kept_RV is None else [slice(0, len(hidden_RH))]:
            grad = _logits(hidden_RH[part], weight_VH, bias_V) if kept_RV is None else kept_RV
            grad.sub_(sums_R[part, None]).exp_()  # the logits are needed no more: their place is taken
            grad.mul_(-grads[0][part, None]).scatter_add_(1, targets_R[part, None], grads[0][part, None])
            narrow = grad.to(hidden_RH.dtype)
            grad_hidden_RH[part] = narrow @ weight_VH
            if wants_weight:
                grad_weight_VH = _plus_product(grad_weight_VH, narrow.T, hidden_RH[part])
            if grad_bias_V is not None:
                grad_bias_V += grad.sum(0)
        return grad_hidden_RH, None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype), grad_bias_V, None


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left·right, in float32."""
    if total is None:
        return _product(left, right)
    return total.addmm_(left, right) if left.dtype == total.dtype else total.add_(_product(left, right))


def _logits(hidden_RH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, into_RV: Tensor | None = None) -> Tensor:
    """float32, in `into_RV` where that is given. The bias may be wider than the weight, as it is under autocast."""
    logits_RV = _product(hidden_RH, weight_VH.T, into_RV)
    return logits_RV if bias_V is None else logits_RV.add_(bias_V)


def _product(left: Tensor, right: Tensor, into: Tensor | None = None) -> Tensor:
    """left·right in float32: not rounded to 16 bits on its way where the device can give its sums as they are."""
    if left.dtype == torch.float32:
        return torch.mm(left, right, out=into)
    wide = torch.mm(left, right, out_dtype=torch.float32) if left.is_cuda else left @ right
    return wide.float() if into is None else into.copy_(wide)


def _chunks(hidden_RH: Tensor, weight_VH: Tensor) -> Iterator[slice]:
    held = HEAD_CHUNK_BYTES.get(hidden_RH.device.type, HEAD_CHUNK_BYTES_ELSEWHERE)
    size = max(1, held // (4 * len(weight_VH)))
    for start in range(0, len(hidden_RH), size):
        yield slice(start, start + size)
