"""What jobs will take."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from service.api.shapes.common import Json
from service.api.shapes.jobs import Seconds, StageNeeds


class AbleWorkers(TypedDict):
    """Workers of one kind; `calibrated` once it is known how fast they are. Their names are for admins."""

    kind: str
    count: int
    calibrated: bool
    names: list[str] | None


class StageEstimate(TypedDict):
    """What a stage will take on the best of `workers`: null where nobody can say. One whose result is there is reused,
    and takes nothing; `missing` is what no worker has."""

    name: str
    tokens: int | None
    seconds: Seconds | None
    peak_memory_bytes: int | None
    disk_bytes: int | None
    reused: bool
    reused_from: str | None
    needs: StageNeeds
    workers: list[AbleWorkers]
    missing: str | None


class Ratios(TypedDict):
    """Of what it took to what was expected: the middle one, and between what eight of ten lie."""

    median: float
    low: float
    high: float


class Past(TypedDict):
    """How far off the estimates of your latest jobs were, by their stages that have ended."""

    jobs: int
    stages: int
    seconds_ratio: Ratios | None
    memory_ratio: Ratios | None


class Estimate(TypedDict):
    """What a job will take, one stage after another. `notes` say what is not known, and what helps."""

    object: Literal["fine_tuning.job.estimate"]
    model: str
    training_file: str
    validation_file: str | None
    method: Literal["supervised", "dpo", "allo"]
    stages: list[StageEstimate]
    tokens: int | None
    seconds: Seconds | None
    peak_memory_bytes: int | None
    disk_bytes: int | None
    past: Past
    notes: list[str]


class SweepPointEstimate(TypedDict):
    """A point, the stages that it `computes` (its others an earlier point does, or they are there), and what these
    take."""

    point: Json
    computes: list[str]
    tokens: int | None
    seconds: Seconds | None
    peak_memory_bytes: int | None
    disk_bytes: int | None


class SweepEstimate(TypedDict):
    """What all points of a sweep will take, one stage after another."""

    object: Literal["fine_tuning.sweep.estimate"]
    model: str
    training_file: str
    validation_file: str | None
    method: Literal["supervised", "dpo", "allo"]
    points: list[SweepPointEstimate]
    tokens: int | None
    seconds: Seconds | None
    peak_memory_bytes: int | None
    disk_bytes: int | None
    past: Past
    notes: list[str]
