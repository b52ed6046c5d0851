"""What a benchmark is: a measure, our side and the rival's. A side returns its figure, measured in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

Figures = Mapping[str, float]
Side = Callable[[], float | Figures]


@dataclass(frozen=True)
class Case:
    """`goal` is for ours / rival, or where nothing is better than 1, how far from it that may be; `limit` says what
    bounds the figure. A side of several figures names them: `figure` is the one meant."""

    measure: str
    ours: Side
    rival: Side
    rival_name: Callable[[], str]
    goal: float
    higher_is_better: bool | None
    limit: str
    figure: str = ""


COMPUTE = f"FLOPs: forward and backward at this machine's {os.cpu_count()} cores"


def torch_version(name: str) -> Callable[[], str]:
    return lambda: f"{name}, torch {version('torch')}"


def transformers_version(name: str) -> Callable[[], str]:
    return lambda: f"{name}, transformers {version('transformers')}"
