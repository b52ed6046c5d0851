"""What a tracker is told of a job, as the process that tells it reads it: plain data, one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """The figures of one step of a stage; `seq` is the number of the event that told them, `at` its time."""

    seq: int
    stage: str
    step: int
    at: int
    values: Mapping[str, float]

    def named(self) -> dict[str, float]:
        """The figures as `stage/figure`."""
        return {f"{self.stage}/{name}": value for name, value in self.values.items()}


@dataclass(frozen=True)
class Telling:
    """A job, and what of it is new to a tracker.

    `place` is where the tracker is, None for where its library looks by itself; `run` is what the tracker calls the
    job, None before it was told; `doubtful` says that an earlier attempt may have told some of this. `results` are the
    figures of the stages that have ended, once the job has.
    """

    id: str
    tracker: str
    place: str | None
    settings: Mapping[str, Any]
    run: str | None
    doubtful: bool
    job: str
    status: str
    parameters: Mapping[str, str]
    points: Sequence[Point]
    results: Mapping[str, float]

    def write(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, line: str) -> Telling:
        found = json.loads(line)
        return cls(**{**found, "points": [Point(**point) for point in found["points"]]})
