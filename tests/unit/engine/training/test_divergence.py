"""When a training passes over a step, goes back, gives up; and when it saves."""

from __future__ import annotations

import pytest

from allo_engine.report import StageError
from allo_engine.training.divergence import Strikes
from allo_engine.training.resuming import Cadence
from tests.clock import Clock


def test_the_third_strike_in_a_row_sends_back_and_the_third_after_that_ends() -> None:
    strikes = Strikes()
    assert [strikes.hit() for _ in range(3)] == [False, False, True]
    assert strikes.in_a_row == 0
    assert [strikes.hit(), strikes.hit()] == [False, False]
    with pytest.raises(StageError, match="learning_rate"):
        strikes.hit()


def test_a_good_step_clears_the_strikes_before_it() -> None:
    strikes = Strikes()
    for _ in range(5):
        assert not strikes.hit()
        assert not strikes.hit()
        strikes.clear()
    assert strikes.in_a_row == 0


def test_a_save_is_due_after_its_seconds_and_again_after_twenty_times_what_it_cost() -> None:
    clock = Clock(100.0)
    cadence = Cadence(60, clock)
    clock.now += 60
    assert not cadence.due()
    clock.now += 1
    assert cadence.due()
    with cadence.saving():
        clock.now += 10
    clock.now += 200
    assert not cadence.due(), "a save of 10 s is worth 200 s of training"
    clock.now += 1
    assert cadence.due()
