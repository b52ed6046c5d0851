"""Intervals of shares and of differences, worked by hand; how often an interval holds the truth, by simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from allo_engine.data.statistics import (
    bootstrap_difference,
    holm,
    paired_difference,
    pass_at_k,
    reliability,
    wilson,
)


def test_wilsons_interval_worked_by_hand() -> None:
    # 1 of 2 with z = 1.96: centre ½; half width z·√(1/8 + z²/16) / (1 + z²/2) = 0.4055
    low, high = wilson(1, 2)
    assert (low, high) == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))
    assert wilson(0, 10)[0] == 0.0


@pytest.mark.parametrize("total", [1, 7, 24, 96, 2000])
def test_an_interval_holds_its_own_share_whatever_rounding_does(total: int) -> None:
    for right in (0, 1, total - 1, total):
        low, high = wilson(right, total)
        assert low <= right / total <= high


def test_a_paired_difference_worked_by_hand() -> None:
    # 3 gained, 1 lost of 10: (3 − 1)/10 = 0.2; variance (4 − 4/10)/100 = 0.036; 1.96·√0.036 = 0.3719
    ours = [True] * 3 + [False] + [True] * 6
    theirs = [False] * 3 + [True] + [True] * 6
    found = paired_difference(ours, theirs)
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == (pytest.approx(-0.1719, abs=1e-4), pytest.approx(0.5719, abs=1e-4))


def test_pass_at_k_is_the_share_of_all_draws_of_k_samples_that_hold_a_right_one() -> None:
    # 2 of 5 right, 2 drawn: 1 − C(3, 2)/C(5, 2) = 1 − 3/10
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert (pass_at_k(5, 0, 5), pass_at_k(5, 1, 5)) == (0.0, 1.0)
    for right in range(8):
        samples = [True] * right + [False] * (7 - right)
        for k in (1, 3, 7):
            drawn = [any(draw) for draw in combinations(samples, k)]
            assert pass_at_k(7, right, k) == pytest.approx(sum(drawn) / len(drawn))


def test_holms_correction_worked_by_hand() -> None:
    # in order 0.005·4, 0.01·3, 0.03·2, 0.04·1: the last is not below the one before it
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_one_seeds_bootstrap_is_mcnemars_interval() -> None:
    # 60 gained, 20 lost of 400: 0.1 ± 1.96·√(80 − 1600/400)/400 = 0.1 ± 0.0427
    ours, theirs = [1] * 60 + [0] * 20 + [1] * 320, [0] * 60 + [1] * 20 + [1] * 320
    found = bootstrap_difference([ours], [theirs])
    assert found["difference"] == pytest.approx(0.1)
    assert (found["low"], found["high"]) == (pytest.approx(0.0573, abs=2e-3), pytest.approx(0.1427, abs=2e-3))
    assert found["p"] < 0.001


def test_three_seeds_that_alone_differ_give_students_interval() -> None:
    # 1, 3 and 5 points: 0.03 ± 4.303·0.02/√3 = 0.03 ± 0.0497; p of t = 2.598 with 2 degrees of freedom is 0.122
    gaps_SP = [[gap] * 50 for gap in (0.01, 0.03, 0.05)]
    found = bootstrap_difference(gaps_SP, [[0.0] * 50] * 3)
    assert (found["low"], found["high"]) == (pytest.approx(-0.0197, abs=4e-3), pytest.approx(0.0797, abs=4e-3))
    assert found["p"] == pytest.approx(0.122, abs=0.02)


def test_the_bootstrap_is_paired_and_equal_arguments_give_equal_figures() -> None:
    ours = np.random.default_rng(0).random((3, 40))
    shifted = bootstrap_difference(ours + 0.25, ours)
    assert (shifted["low"], shifted["high"]) == (pytest.approx(0.25), pytest.approx(0.25))
    theirs = np.random.default_rng(1).random((3, 40))
    assert bootstrap_difference(ours, theirs, seed=5) == bootstrap_difference(ours, theirs, seed=5)
    assert bootstrap_difference(ours, ours) == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_problem", "rest"),
    [(5, 0.1, 0.0, 0.1), (5, 0.02, 0.1, 0.4), (5, 0.0, 0.3, 0.3), (5, 0.0, 0.0, 0.4), (3, 0.03, 0.1, 0.4)],
    ids=["seeds alone matter", "all matter", "no seed matters", "neither matters", "three seeds"],
)
def test_the_interval_holds_the_true_difference_about_95_times_of_100(
    seeds: int, of_seed: float, of_problem: float, rest: float
) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for simulation in range(300):
        gaps_SP = 0.02 + (
            of_seed * rng.standard_normal((seeds, 1))
            + of_problem * rng.standard_normal((1, 100))
            + rest * rng.standard_normal((seeds, 100))
        )
        found = bootstrap_difference(gaps_SP, np.zeros_like(gaps_SP), seed=simulation, draws=400)
        held += found["low"] <= 0.02 <= found["high"]
    assert 0.92 <= held / 300 <= 0.98


def test_the_calibration_error_worked_by_hand() -> None:
    # σ(0) = ½, a tie, half right: no error. σ(ln 3) = ¾ three times, right twice: ¾ of the pairs are 1/12 off.
    found = reliability([0.0, math.log(3), math.log(3), -math.log(3)])
    assert found["calibration_error"] == pytest.approx(0.0625)
    assert [(one["pairs"], round(one["confidence"], 3), round(one["right"], 3)) for one in found["reliability"]] == [
        (1, 0.5, 0.5),
        (3, 0.75, 0.667),
    ]
    assert reliability([1e6, -1e6])["calibration_error"] == pytest.approx(0.5)
