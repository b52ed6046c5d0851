"""Bars of a stage over its job's time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from service.jobs.history import Attempt, Course
from service.jobs.tables import Job
from service.pages.timeline import LEAST, bars

times = some.lists(some.integers(0, 10**6), min_size=2, max_size=9, unique=True).map(sorted)


@given(times, some.integers(0, 10))
def test_bars_lie_within_the_jobs_time_and_are_to_be_seen(at: list[int], later: int) -> None:
    began, now = at[0], at[-1] + later
    attempts = [Attempt(one, other, "crashed") for one, other in zip(at[::2], at[1::2], strict=False)]
    for bar in bars(Job(created_at=began), Course(began, tuple(attempts), 0, 0), now):
        assert 0 <= bar.x <= 100 - LEAST
        assert LEAST <= bar.width <= 100 - bar.x + 0.01


def test_waits_stand_between_attempts() -> None:
    job = Job(created_at=0, finished_at=100)
    course = Course(10, (Attempt(20, 40, "given_back"), Attempt(60, 100, "succeeded")), 30, 60)
    assert [(bar.kind, bar.x, bar.width) for bar in bars(job, course, 999)] == [
        ("wait", 10, 10),
        ("rest", 20, 20),
        ("wait", 40, 20),
        ("good", 60, 40),
    ]
    assert bars(job, Course(10, (), 90, None), 999)[0].told == "waiting for 1 min 30 s"
