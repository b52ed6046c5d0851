"""When an engine that lives is stalled: told from its own pace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.pace import Pace


def watched(pace: Pace, since: float, until: float) -> float | None:
    """When it is found to be stalled, looked at once a second."""
    now = since
    while now < until:
        now += 1
        if pace.stalls(now):
            return now
    return None


def test_before_its_first_word_it_may_load_for_longer() -> None:
    assert watched(Pace(10, began=0), 0, 1000) == 41


def test_after_that_it_may_be_silent_for_its_patience() -> None:
    pace = Pace(10, began=0)
    pace.moved(5)
    assert watched(pace, 5, 1000) == 16
    assert pace.stalled == 11
    assert not pace.stalls(1000), "it is found once"


def test_a_slow_one_may_be_silent_for_longer() -> None:
    pace = Pace(10, began=0)
    for now in (5, 9, 10):
        pace.moved(now)
    assert watched(pace, 10, 1000) == 10 + 20 * 4 + 1


def test_time_in_which_nobody_looked_is_no_silence() -> None:
    pace = Pace(10, began=0)
    pace.moved(1)
    assert watched(pace, 1, 5) is None
    assert not pace.stalls(5000)
    assert watched(pace, 5000, 6000) == 5000 + 7


@given(st.lists(st.floats(0.1, 2.9), min_size=1, max_size=50))
def test_what_goes_on_at_a_pace_of_its_own_is_never_stalled(gaps: list[float]) -> None:
    pace, now = Pace(3, began=0), 0.0
    for gap in gaps:
        now += gap
        assert not pace.stalls(now)
        pace.moved(now)


def test_one_that_reads_or_writes_large_files_works() -> None:
    moved = iter([0, 2**20, 2**20, 2**21, 2**21, 2**21])
    pace = Pace(10, began=0, traffic=lambda: next(moved))
    pace.moved(1)
    assert watched(pace, 1, 1000) == 1 + 3 * 11
    assert pace.stalled == 11


def test_without_patience_set_nothing_is_stalled() -> None:
    pace = Pace(float("inf"), began=0)
    pace.moved(1)
    assert watched(pace, 1, 10_000) is None
