"""Log-probabilities of tokens from hidden states and the head's weight, without ever holding all logits.

The logits of R positions are R·V numbers, as many again for their softmax and their gradients: at a vocabulary of 49 k
these outweigh a small model's activations. So a few positions go through the head at a time; what is kept for the
backward pass is the hidden states and a log-sum a position, and the logits are computed a second time, a slice of the
vocabulary at a time, unless they are few.
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
            del logits  # before the next ones are made
        ctx.save_for_backward(hidden_RH, weight_VH, bias_V, targets_R, sums_R, kept_RV)
        return logps_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """∂logπ[r]/∂logits[r] = 1[target[r]] − softmax.

        As each position's log-sum is known, the vocabulary is cut instead of the positions: a slice of the weight has
        its whole gradient from one product, and no second one stands beside it to add up.
        """
        hidden_RH, weight_VH, bias_V, targets_R, sums_R, kept_RV = ctx.saved_tensors
        _, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_hidden_RH = torch.zeros_like(hidden_RH, dtype=torch.float32)
        grad_weight_VH = torch.empty_like(weight_VH) if wants_weight else None
        grad_bias_V = torch.empty_like(bias_V) if wants_bias else None
        for part in _slices(hidden_RH, weight_VH) if kept_RV is None else [slice(0, len(weight_VH))]:
            bias = None if bias_V is None else bias_V[part]
            grad = _logits(hidden_RH, weight_VH[part], bias) if kept_RV is None else kept_RV
            grad.sub_(sums_R[:, None]).exp_().mul_(-grads[0][:, None])  # the logits' place is taken
            _add_at(grad, targets_R - part.start, grads[0])
            narrow = grad.to(hidden_RH.dtype)
            grad_hidden_RH += narrow @ weight_VH[part]
            if grad_weight_VH is not None:
                torch.mm(narrow.T, hidden_RH, out=grad_weight_VH[part])
            if grad_bias_V is not None:
                grad_bias_V[part] = grad.sum(0)
            del grad, narrow
        return grad_hidden_RH.to(hidden_RH.dtype), grad_weight_VH, grad_bias_V, None


def _add_at(into_RV: Tensor, columns_R: Tensor, values_R: Tensor) -> None:
    """Add to each row its value, at its column if that is one of these."""
    inside_R = (columns_R >= 0) & (columns_R < into_RV.shape[1])
    into_RV.scatter_add_(1, columns_R.clamp(0, into_RV.shape[1] - 1)[:, None], (values_R * inside_R)[:, None])


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
    """Positions whose logits are held at once."""
    return _cut(len(hidden_RH), len(weight_VH), hidden_RH.device)


def _slices(hidden_RH: Tensor, weight_VH: Tensor) -> Iterator[slice]:
    """Tokens of the vocabulary whose logits, of all positions, are held at once."""
    return _cut(len(weight_VH), len(hidden_RH), hidden_RH.device)


def _cut(count: int, width: int, device: torch.device) -> Iterator[slice]:
    size = max(1, HEAD_CHUNK_BYTES.get(device.type, HEAD_CHUNK_BYTES_ELSEWHERE) // (4 * width))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
