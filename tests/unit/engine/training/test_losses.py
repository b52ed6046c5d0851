"""Every loss against a value worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from allo_engine.training import losses


def test_sft_is_the_sum_of_negative_log_probabilities() -> None:
    # −(ln ½ + ln ¼) = ln 2 + ln 4 = 3 ln 2
    logps = torch.tensor([0.5, 0.25]).log()
    assert float(losses.sft(logps)) == pytest.approx(3 * math.log(2))


def test_dpo_of_equal_log_ratios_is_ln_2() -> None:
    assert float(losses.dpo(torch.tensor(0.7), torch.tensor(0.7), beta=0.1)) == pytest.approx(math.log(2))


def test_dpo_worked_by_hand() -> None:
    # β(Σd_c − Σd_r) = 0.5 · (1 − (−1)) = 1;  −ln σ(1) = ln(1 + e⁻¹) = 0.31326
    assert float(losses.dpo(torch.tensor(1.0), torch.tensor(-1.0), beta=0.5)) == pytest.approx(
        math.log(1 + math.exp(-1))
    )


def test_filtered_dpo_counts_only_the_lowest_rejected_tokens() -> None:
    # R = 5, ε = 0.4 → k = 2: the rejected tokens −3 and −1. Σ_chosen d = 2.
    # β(2 − (−4)) = 0.1 · 6 = 0.6;  −ln σ(0.6) = ln(1 + e^−0.6)
    chosen, rejected = torch.tensor([0.5, 1.5]), torch.tensor([4.0, -1.0, 2.0, -3.0, 0.0])
    assert float(losses.filtered_dpo(chosen, rejected, 0.1, 0.4)) == pytest.approx(math.log(1 + math.exp(-0.6)))


def test_filtered_on_both_sides_counts_the_highest_chosen_tokens_too() -> None:
    # R = T = 5, ε = 0.4 → k = 2: chosen 3 and 2, rejected −3 and −1.  β(5 − (−4)) = 0.9
    chosen, rejected = torch.tensor([0.0, 3.0, -5.0, 2.0, 1.0]), torch.tensor([4.0, -1.0, 2.0, -3.0, 0.0])
    loss = losses.filtered_dpo(chosen, rejected, 0.1, 0.4, both_sides=True)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.9)))


def test_filtered_dpo_with_every_token_is_dpo() -> None:
    chosen, rejected = torch.randn(7), torch.randn(5)
    expected = losses.dpo(chosen.sum(), rejected.sum(), 0.1)
    assert torch.allclose(losses.filtered_dpo(chosen, rejected, 0.1, 1.0), expected)


def test_filtered_dpo_gives_gradient_to_the_kept_tokens_alone() -> None:
    rejected = torch.tensor([4.0, -1.0, 2.0, -3.0, 0.0], requires_grad=True)
    losses.filtered_dpo(torch.zeros(2), rejected, 0.1, 0.4).backward()
    assert rejected.grad is not None
    assert (rejected.grad != 0).tolist() == [False, True, False, True, False]


def test_dpop_counts_what_the_chosen_response_has_lost() -> None:
    # Σ_chosen d = −0.5, so λ·max(0, 0.5) = 2 is taken off it.  β(−0.5 − 2 − (−4)) = 0.1 · 1.5 = 0.15
    chosen, rejected = torch.tensor([0.5, -1.0]), torch.tensor([4.0, -1.0, 2.0, -3.0, 0.0])
    loss = losses.filtered_dpo(chosen, rejected, 0.1, 0.4, dpop=4.0)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.15)))
    # both sides filtered: the one chosen token of highest d counts, what is lost is the whole response's.  β(2) = 0.2
    both = losses.filtered_dpo(chosen, rejected, 0.1, 0.4, both_sides=True, dpop=5.0)
    assert float(both) == pytest.approx(math.log(1 + math.exp(-0.1 * (0.5 - 2.5 + 4))))


def test_nothing_is_lost_where_the_chosen_response_is_likelier_or_equal_up_to_rounding() -> None:
    for chosen in ([0.5, 0.1], [3e-5, -4e-5]):
        d = torch.tensor(chosen, requires_grad=True)
        lost = losses.lost(d)
        lost.backward()
        assert (lost.item(), d.grad.tolist()) == (0, [0, 0])  # type: ignore[union-attr]


def test_mean_nll_is_a_tokens_worked_by_hand() -> None:
    # −(ln ½ + ln ⅛) / 2 = 2 ln 2
    assert float(losses.mean_nll(torch.tensor([0.5, 0.125]).log())) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(
    ("length", "ratio", "kept"), [(1, 0.1, 1), (9, 0.1, 1), (10, 0.1, 1), (11, 0.1, 2), (30, 0.1, 3), (100, 0.07, 7)]
)
def test_epsilon_is_of_the_responses_own_length_and_at_least_one_token(length: int, ratio: float, kept: int) -> None:
    assert len(losses.lowest(torch.arange(float(length)), ratio)) == kept


def test_equal_log_ratios_are_kept_in_their_order() -> None:
    assert losses.lowest(torch.zeros(40), 0.1).tolist() == [0, 1, 2, 3]


def test_token_npo_worked_by_hand() -> None:
    # d = 2 and 0, w = 1 and ½, β = 0.5: −ln σ(−1) − ½ ln σ(0) = ln(1 + e) + ½ ln 2
    logps, reference = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, -1.0])
    loss = losses.token_npo(logps, reference, torch.tensor([1.0, 0.5]), beta=0.5)
    assert float(loss) == pytest.approx(math.log(1 + math.e) + 0.5 * math.log(2))


def test_token_npo_pushes_weighted_tokens_down_and_leaves_the_others() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    losses.token_npo(logps, torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, 0.0, 1.0]), beta=0.1).backward()
    assert logps.grad is not None
    # d/dlogπ of −ln σ(−βd) at d = 0 is β/2
    assert logps.grad.tolist() == pytest.approx([0.05, 0.0, 0.05])


def test_simnpo_worked_by_hand() -> None:
    # the mean over weighted tokens is (1·−1 + 0.5·−4) / 1.5 = −2; −(2/2.5)·ln σ(2.5·2 − 0.5) = 0.8·ln(1 + e^−4.5)
    loss = losses.simnpo(torch.tensor([-1.0, -4.0, -9.0]), torch.tensor([1.0, 0.5, 0.0]), beta=2.5, gamma=0.5)
    assert loss.item() == pytest.approx(0.8 * math.log1p(math.exp(-4.5)), rel=1e-5)


def test_simnpo_without_a_weighted_token_is_zero_and_has_a_gradient() -> None:
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = losses.simnpo(logps, torch.zeros(2), beta=0.1, gamma=0.0)
    loss.backward()
    assert loss.item() == 0
    assert logps.grad is not None
    assert not logps.grad.any()


def test_log_ratios_that_differ_by_rounding_are_equal() -> None:
    assert losses.lowest(torch.tensor([3e-6, -4e-6, 0.0, -2e-3]), 0.5).tolist() == [3, 0]
