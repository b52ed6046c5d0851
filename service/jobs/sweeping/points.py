"""The points of a sweep: the grid of some settings' values, and the job at each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.jobs.errors import InvalidRequest
from service.jobs.submission import NewJob

MOST_POINTS = 64
"""Jobs that one sweep may be."""

SEED = "seed"

Swept = Mapping[str, Sequence[Any]]
"""The values of each setting: `STAGE.FIELD`, the name of a hyperparameter, or `seed`."""

Point = Mapping[str, Any]
"""One value of each."""


def points_of(swept: Swept) -> list[Point]:
    """Every combination, the values of the last setting changing first. Raises InvalidRequest for too many."""
    count = math.prod(map(len, swept.values()))
    if count > MOST_POINTS:
        raise InvalidRequest(
            f"The sweep has {count} points; at most {MOST_POINTS} are taken.", "sweep", "invalid_sweep"
        )
    return [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]


def at(new: NewJob, point: Point) -> NewJob:
    """The job with the point's values in place of its own. Raises InvalidRequest; what a stage makes of a value, its
    plan tells."""
    for name, value in point.items():
        stage, dot, field = name.rpartition(".")
        if name == SEED:
            new = replace(new, seed=_seed(value))
        elif not dot:
            new = replace(new, hyperparameters={**new.hyperparameters, name: value})
        elif stage in new.stages and new.stages[stage] is None:
            message = f"The job leaves stage {stage} out: there is no {name} to sweep."
            raise InvalidRequest(message, f"sweep.{name}", "invalid_sweep")
        else:
            settings = {**(new.stages.get(stage) or {}), field: value}
            new = replace(new, stages={**new.stages, stage: settings})
    return new


def _seed(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise InvalidRequest(f"A seed is a whole number from 0 to {2**31 - 1}.", f"sweep.{SEED}")
    return value
