"""Models of jobs against others."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class ComparedPair(TypedDict):
    """JOB:MODEL of each side, and their jobs' seeds."""

    ours: str
    theirs: str
    seeds: list[int]


class ComparedMeasure(TypedDict):
    """Means over all runs and cases; the difference is ours minus theirs, `low` to `high` its 95 % interval and `p` its
    two-sided p, by a paired bootstrap over seeds and cases."""

    measure: str
    better: Literal["higher", "lower"]
    cases: int
    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    p: float


class ChangedAnswer(TypedDict):
    """A case that ours has right and theirs has not in `gained` pairs, the other way round in `lost`. Answers are those
    of the first pair that differs; null where models answer in no words."""

    case: str
    gained: int
    lost: int
    problem: str | None
    ours: str | None
    theirs: str | None


class ChangedAnswers(TypedDict):
    """Over all pairs; `shown` are the first of the `differing` cases."""

    gained: int
    lost: int
    differing: int
    shown: list[ChangedAnswer]


class Comparison(TypedDict):
    """On the `cases` that all runs share; `left_out` are those that some have and others have not."""

    object: Literal["fine_tuning.comparison"]
    pairs: list[ComparedPair]
    cases: int
    left_out: int
    measures: list[ComparedMeasure]
    changed: ChangedAnswers | None
