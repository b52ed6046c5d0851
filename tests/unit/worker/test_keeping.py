"""At what pace checkpoints are copied to the store."""

from __future__ import annotations

from worker.keeping import Pace


def test_copies_are_so_far_apart_that_they_take_a_tenth_of_the_time_at_most() -> None:
    now = [100.0]
    pace = Pace(60, clock=lambda: now[0])
    assert pace.wait() == 0, "the first one waits for nothing"
    for cost, apart in ((1.0, 60.0), (30.0, 300.0), (0.1, 60.0)):
        began = now[0]
        now[0] += cost
        assert round(pace.took(began), 6) == cost
        assert round(pace.wait(), 6) == apart
        now[0] += apart
        assert pace.wait() == 0
