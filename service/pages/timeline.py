"""A job's stages along its time, as bars: where each waited, and each of its attempts. Drawn in hundredths of the
job's time, so that a bar is as wide as its column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.jobs.history import REUSED, Attempt, Course
from service.jobs.tables import Job
from service.pages.words import duration

LEAST = 0.8
"""As narrow as a bar gets that is to be seen."""

GOOD = ("succeeded", REUSED)
RESTED = ("given_back", "stopped", "cancelled")


@dataclass(frozen=True)
class Bar:
    """From `x`, so wide, in hundredths; `kind` is its class, and `told` what it is."""

    kind: str
    x: float
    width: float
    told: str


def bars(job: Job, course: Course, now: int) -> Sequence[Bar]:
    """A stage's bars, in the order of time."""
    until = job.finished_at or now
    scale = 100 / max(until - job.created_at, 1)
    place = course.ready_at
    found = []
    for number, attempt in enumerate(course.attempts, 1):
        if place is not None and attempt.began > place:
            found.append(_bar("wait", place, attempt.began, f"waited {duration(attempt.began - place)}", job, scale))
        place = attempt.ended or until
        found.append(_bar(_kind(attempt), attempt.began, place, _told(number, attempt, until), job, scale))
    if place is not None and not course.attempts and until > place:
        found.append(_bar("wait", place, until, f"waiting for {duration(until - place)}", job, scale))
    return found


def _bar(kind: str, began: int, ended: int, told: str, job: Job, scale: float) -> Bar:
    width = max((ended - began) * scale, LEAST)
    x = min(max((began - job.created_at) * scale, 0), 100 - LEAST)
    return Bar(kind, round(x, 2), round(min(width, 100 - x), 2), told)


def _kind(attempt: Attempt) -> str:
    if attempt.outcome is None:
        return "now"
    return "good" if attempt.outcome in GOOD else "rest" if attempt.outcome in RESTED else "bad"


def _told(number: int, attempt: Attempt, until: int) -> str:
    if attempt.outcome == REUSED:
        return "reused: nothing of it has changed"
    took = duration((attempt.ended or until) - attempt.began)
    outcome = "running" if attempt.outcome is None else attempt.outcome.replace("_", " ")
    return f"run {number}, {outcome}, {took}"
