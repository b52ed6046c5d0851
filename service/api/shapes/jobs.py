"""Jobs, their stages, and what these tell and leave."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from service.api.shapes.common import Json


class Progress(TypedDict):
    """In the stage's own unit; `fraction` from 0 to 1."""

    step: int | None
    total: int | None
    fraction: float


class JobProgress(TypedDict):
    stages_ended: int
    stages_total: int
    fraction: float


class StageNeeds(TypedDict):
    """What a stage must find on a worker; `devices` null: as many as there are."""

    devices: int | None
    device_memory_bytes: int
    memory_bytes: int
    memory_bytes_without_device: int
    packages: list[str]
    precision: str


class Artifact(TypedDict):
    """A file that a stage wrote."""

    id: str
    object: Literal["artifact"]
    created_at: int
    stage: str
    output: str
    path: str
    bytes: int
    sha256: str
    url: str


class Seconds(TypedDict):
    """What is expected, between what is likely the least and the most."""

    low: float
    expected: float
    high: float


class Expected(TypedDict):
    """What was expected of a stage when its job was submitted, against which its `metrics` stand."""

    tokens: int
    seconds: Seconds | None
    peak_memory_bytes: int | None
    disk_bytes: int


class Attempt(TypedDict):
    """How a run of a stage ended. `reason` is succeeded, paused, given_back, cancelled, or what it failed of: stalled,
    worker_lost, killed, crashed, out_of_memory, diverged, disk_full, deadline, …"""

    attempt: int
    worker: str | None
    began_at: int | None
    ended_at: int
    reason: str
    message: str | None


class LetGo(TypedDict):
    """What a stage made and the service's policy did not keep: the retry of its job, or another job that wants it,
    computes it again."""

    at: int
    files: int
    bytes: int


class Stage(TypedDict):
    """A stage of a job; in lists of jobs, without its attempts and artifacts. Its `estimate` comes a little after the
    submit, where a worker is calibrated."""

    id: str
    name: str
    status: Literal["waiting", "ready", "dispatched", "running", "succeeded", "failed", "cancelled"]
    attempt: int
    progress: Progress
    eta_seconds: int | None
    started_at: int | None
    finished_at: int | None
    metrics: Json
    error: Json | None
    reused_from: str | None
    needs: StageNeeds | None
    worker: str | None
    devices: list[str] | None
    missing: str | None
    let_go: LetGo | None
    estimate: Expected | None
    attempts: NotRequired[list[Attempt]]
    artifacts: NotRequired[list[Artifact]]


class PointOfSweep(TypedDict):
    """The sweep that a job is of, and its own values of what is swept."""

    id: str
    point: Json


class Job(TypedDict):
    """A fine-tuning job. `method` spells out every setting of every stage."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    training_file: str
    validation_file: str | None
    corrections_file: str | None
    retention_file: str | None
    masks: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: Json
    method: Json
    integrations: list[Json] | None
    metadata: dict[str, str] | None
    sweep: PointOfSweep | None
    user_provided_suffix: str | None
    error: Json | None
    cancel_requested: bool
    priority: Literal["low", "normal", "high"]
    max_seconds: int | None
    ran_seconds: float
    eta_seconds: int | None
    progress: JobProgress
    stages: list[Stage]


class Event(TypedDict):
    """Something that happened in a job; `seq` counts from 1 without a gap."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: Json
    seq: int


class Point(TypedDict):
    """The figures of one step of training; `steps` is how many there are."""

    id: str
    object: Literal["fine_tuning.job.metrics"]
    stage: str
    step: int
    steps: int | None
    created_at: int
    metrics: Json


class Checkpoint(TypedDict):
    """A model that a stage left."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: Json
    stage: str
