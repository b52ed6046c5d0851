"""The head in pieces against all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from allo_engine.model import head
from allo_engine.model.head import TokenLogps

POSITIONS, HIDDEN, VOCABULARY = 11, 8, 37


@pytest.mark.parametrize("kept", [0, 1 << 20], ids=["computed_again", "kept"])
@pytest.mark.parametrize("positions_at_once", [1, 4, 11, 100])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_pieces_of_the_head_give_what_all_logits_give(
    monkeypatch: pytest.MonkeyPatch,
    kept: int,
    positions_at_once: int,
    with_bias: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    monkeypatch.setattr(head, "HEAD_KEPT_BYTES", kept)
    monkeypatch.setattr(head, "HEAD_CHUNK_BYTES", {"cpu": positions_at_once * 4 * VOCABULARY})
    hidden, weight, bias, targets, grads = _given(dtype)
    given = [hidden, weight, *([bias] if with_bias else [])]
    logps = TokenLogps.apply(hidden, weight, bias if with_bias else None, targets)
    found = torch.autograd.grad(logps, given, grads)

    wide = [leaf.detach().float().requires_grad_() for leaf in given]
    logits = wide[0] @ wide[1].T + (wide[2] if with_bias else 0)
    expected = logits.log_softmax(-1)[torch.arange(POSITIONS), targets]
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=tolerance, atol=tolerance)
    for ours, theirs, leaf in zip(found, torch.autograd.grad(expected, wide, grads), given, strict=True):
        assert ours.dtype == leaf.dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


def test_a_second_backward_pass_over_logits_that_were_overwritten_is_refused() -> None:
    hidden, weight, _, targets, grads = _given(torch.float32)
    logps = TokenLogps.apply(hidden, weight, None, targets)
    logps.backward(grads, retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace operation"):
        logps.backward(grads)


def _given(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, the head's weight and bias, the tokens predicted, and gradients of their log-probabilities."""
    torch.manual_seed(0)
    leaves = (torch.randn(size).to(dtype).requires_grad_() for size in [(POSITIONS, HIDDEN), (VOCABULARY, HIDDEN)])
    bias = torch.randn(VOCABULARY).to(dtype).requires_grad_()
    return *leaves, bias, torch.randint(VOCABULARY, (POSITIONS,)), torch.randn(POSITIONS)  # type: ignore[return-value]


@pytest.mark.parametrize("kept", [0, 1 << 20], ids=["computed_again", "kept"])
def test_a_bias_stays_float32_where_the_products_are_16_bits(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """As under autocast, in a head that has a bias (Phi-2)."""
    monkeypatch.setattr(head, "HEAD_KEPT_BYTES", kept)
    hidden, weight, bias, targets, grads = _given(torch.bfloat16)
    wide_bias = bias.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logps = TokenLogps.apply(hidden, weight, wide_bias, targets)
    found = torch.autograd.grad(logps, [hidden, weight, wide_bias], grads)
    leaves = [leaf.detach().float().requires_grad_() for leaf in (hidden, weight, wide_bias)]
    expected = (leaves[0] @ leaves[1].T + leaves[2]).log_softmax(-1)[torch.arange(POSITIONS), targets]
    for ours, theirs in zip(found, torch.autograd.grad(expected, leaves, grads), strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=2e-2)
    assert found[2].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scoring_gives_the_very_bits_of_training(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(head, "HEAD_CHUNK_BYTES", {"cpu": 4 * 4 * VOCABULARY})
    hidden, weight, bias, targets, _ = _given(dtype)
    with torch.no_grad():
        scored = TokenLogps.apply(hidden, weight, bias, targets)
    assert torch.equal(scored, TokenLogps.apply(hidden, weight, bias, targets))
