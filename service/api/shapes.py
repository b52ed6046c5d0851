"""What answers look like: the response models of the documentation, against which tests hold answers. A later version
may add fields to each."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Json = dict[str, Any]


class ErrorBody(TypedDict):
    """`message` is for people, `code` for programs, `param` the field that it is about. Some errors have more."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """Every error."""

    error: ErrorBody


class Deleted(TypedDict):
    id: str
    object: str
    deleted: Literal[True]


class File(TypedDict):
    """An uploaded file; one with status `error` has a report of its bad lines."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    format: str | None
    form: str | None
    container: str | None
    rows: int | None
    duplicates: int | None
    sha256: str


class Spread(TypedDict):
    """Of lengths in tokens."""

    min: int
    median: int
    p95: int
    max: int


class TokenLengths(TypedDict):
    """Of what is trained on: each response with what comes before it is a sequence."""

    lines: int
    lines_measured: int
    sequences: int
    prompt: Spread | None
    response: Spread | None
    total: Spread | None
    model_length: int
    longer_than_model: int


class Segment(TypedDict):
    text: str
    trained: bool


class ShownSequence(TypedDict):
    """`of` says which response it ends in."""

    of: Literal["response", "chosen", "rejected", "prediction", "correction"]
    tokens: int
    trained_tokens: int
    segments: list[Segment]


class ShownLine(TypedDict):
    line: int
    sequences: list[ShownSequence]


class Overlap(TypedDict):
    """Lines of the validation file, and their prompts, that stand in the file too."""

    lines: int
    prompts: int


class Insight(TypedDict):
    """What a file is to a model, once `status` is completed."""

    object: Literal["file.insight"]
    status: Literal["running", "completed"]
    file_id: str
    model: str
    validation_file: str | None
    tokens: NotRequired[TokenLengths]
    preview: NotRequired[list[ShownLine]]
    overlap: NotRequired[Overlap | None]


class Upload(TypedDict):
    """A file that comes in parts."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    mime_type: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: File | None


class UploadPart(TypedDict):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str
    bytes: int
    sha256: str


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


class Stage(TypedDict):
    """A stage of a job; in lists of jobs, without its artifacts."""

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
    artifacts: NotRequired[list[Artifact]]


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
    masks: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    hyperparameters: Json
    method: Json
    integrations: None
    metadata: dict[str, str] | None
    user_provided_suffix: str | None
    error: Json | None
    cancel_requested: bool
    eta_seconds: int | None
    progress: JobProgress
    stages: list[Stage]


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


class Model(TypedDict):
    """What jobs start from and what they made."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    job_id: str | None
    bytes: int
    origin: Json | None
    verdict: Json | None
    exports: list[Json]


class ModelFile(TypedDict):
    id: str
    object: Literal["model.file"]
    path: str
    bytes: int
    sha256: str
    url: str


class Device(TypedDict):
    name: str
    kind: str
    memory_bytes: int | None


class UnderWay(TypedDict):
    """A stage that was given to a worker."""

    id: str
    job_id: str
    name: str
    status: str
    devices: list[str] | None


class Worker(TypedDict):
    """A worker that lives, and what it has. Once it is `calibrated`, it is known how fast it is."""

    id: str
    object: Literal["worker"]
    host: str
    started_at: int
    beat_at: int
    code_version: str
    slots: int
    devices: list[Device]
    cores: int
    memory_bytes: int
    precisions: list[str]
    backends: dict[str, str]
    calibrated: bool
    stages: list[UnderWay]


class Webhook(TypedDict):
    """Where ends of jobs are told; the signing secret is shown where it is made."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    signing_secret: NotRequired[str]


class Delivery(TypedDict):
    """What became of one event at one endpoint."""

    id: str
    object: Literal["webhook_delivery"]
    created_at: int
    webhook_endpoint_id: str
    fine_tuning_job_id: str | None
    event_type: str
    status: Literal["delivered", "pending", "failed"]
    attempts: int
    delivered_at: int | None
    next_attempt_at: int | None
    status_code: int | None
    error: str | None


class WebhookTest(TypedDict):
    """How a test event was taken."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    success: bool


class EventTypes(TypedDict):
    object: Literal["list"]
    data: list[str]


class Key(TypedDict):
    """An API key; its secret is shown where it is made."""

    id: str
    object: Literal["api_key"]
    owner: str
    scopes: list[str]
    begins_with: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    status: str
    secret: NotRequired[str]


class AuditEntry(TypedDict):
    """Who did what."""

    id: str
    object: Literal["audit_entry"]
    created_at: int
    owner: str
    verb: str
    status: int


class HubModel(TypedDict):
    """A repository's revision, as the Hub's client reads it."""

    id: str
    sha: str
    siblings: list[Json]


class HubEntry(TypedDict):
    type: Literal["file"]
    path: str
    size: int
    oid: str


class HubRefs(TypedDict):
    branches: list[Json]
    tags: list[Json]
