"""What a benchmark is: a measure, our side and the rival's. A side returns its figure, measured in its own process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """`goal` is for ours / rival; `limit` says what bounds the figure."""

    measure: str
    ours: Callable[[], float]
    rival: Callable[[], float]
    rival_name: Callable[[], str]
    goal: float
    higher_is_better: bool
    limit: str
