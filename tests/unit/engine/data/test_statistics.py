"""Intervals of shares, worked by hand."""

from __future__ import annotations

import pytest

from allo_engine.data.statistics import paired_difference, wilson


def test_wilsons_interval_worked_by_hand() -> None:
    # 1 of 2 with z = 1.96: centre ½; half width z·√(1/8 + z²/16) / (1 + z²/2) = 0.4055
    low, high = wilson(1, 2)
    assert (low, high) == (pytest.approx(0.0945, abs=1e-4), pytest.approx(0.9055, abs=1e-4))
    assert wilson(0, 10)[0] == 0.0


def test_a_paired_difference_worked_by_hand() -> None:
    # 3 gained, 1 lost of 10: (3 − 1)/10 = 0.2; variance (4 − 4/10)/100 = 0.036; 1.96·√0.036 = 0.3719
    ours = [True] * 3 + [False] + [True] * 6
    theirs = [False] * 3 + [True] + [True] * 6
    found = paired_difference(ours, theirs)
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == (pytest.approx(-0.1719, abs=1e-4), pytest.approx(0.5719, abs=1e-4))
