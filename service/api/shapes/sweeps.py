"""One job at many points."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from service.api.shapes.common import Json

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


class SweepFigure(TypedDict):
    """What the held-out file says of a model, `low` to `high` its 95 % interval, where it has one."""

    measure: Literal["accuracy", "cross_entropy"]
    better: Literal["higher", "lower"]
    value: float
    low: float | None
    high: float | None


class SweepPoint(TypedDict):
    """A point's values and its job. `figure` is of the job's aligned model, once that is evaluated;
    `best_validation_loss` of the last training, where that held a share out: it compares no different losses."""

    point: Json
    job_id: str
    status: Status
    progress: float
    fine_tuned_model: str | None
    figure: SweepFigure | None
    best_validation_loss: float | None


class SweepBest(TypedDict):
    """The setting with the best mean over its seeds, and its jobs; the interval is the mean of theirs."""

    setting: Json
    job_ids: list[str]
    figure: SweepFigure


class Sweep(TypedDict):
    """A sweep, as far as its jobs are there; `jobs` counts them by status. In lists without its points. `notes` say
    how far the best can be believed."""

    id: str
    object: Literal["fine_tuning.sweep"]
    created_at: int
    model: str
    training_file: str
    validation_file: str | None
    status: Status
    jobs: dict[str, int]
    points: NotRequired[list[SweepPoint]]
    best: NotRequired[SweepBest | None]
    notes: NotRequired[list[str]]
