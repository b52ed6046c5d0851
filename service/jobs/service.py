"""What an owner does with jobs: submit, read, cancel, retry. One verb, one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from sqlalchemy.orm import Session

from allo_engine.pipeline import Data, Format, Method, PlannedStage, plan
from service.db import Database
from service.jobs import repository
from service.jobs.errors import Conflict, InvalidRequest, NotFound, TooMany
from service.jobs.ids import new_id
from service.jobs.lifecycle import JOB_ENDED, JobStatus, StageStatus, move
from service.jobs.progression import add_event, advance, cancel_unstarted, settle
from service.jobs.repository import Page
from service.jobs.tables import Artifact, Event, File, Idempotency, Job, Model, Stage
from service.storage.store import Store


@dataclass(frozen=True)
class NewJob:
    """A job as it is asked for. `stages` and `hyperparameters` are checked by the pipeline itself."""

    model: str
    training_file: str
    validation_file: str | None = None
    corrections_file: str | None = None
    method: Method = "supervised"
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    suffix: str | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Sender:
    """Who submits, and what tells a repetition of the same request from a new one.

    `idempotency_key` is the client's own; without one, a request that the client marks as a retry means the job that
    the same key made from the same body within the last `retry_window` seconds.
    """

    key_id: str
    owner: str
    body_hash: str
    idempotency_key: str | None = None
    is_retry: bool = False
    retry_window: float = 600
    max_active_jobs: int = 100


@dataclass(frozen=True)
class JobView:
    """A job with its stages in running order, the files that they wrote, and how long each stage took (seconds) when
    the owner last ran it on the same model and file."""

    job: Job
    stages: tuple[Stage, ...]
    artifacts: tuple[Artifact, ...]
    earlier_seconds: Mapping[str, int]


def submit(database: Database, store: Store, new: NewJob, sender: Sender) -> JobView:
    """Makes a job, its stages and its first events; or finds the job that this very request made before.

    Raises PlanError, InvalidRequest or NotFound, naming the field, for what cannot run; TooMany at the owner's limit.
    """
    with database.transaction() as session:
        now = database.now()
        repository.lock_key(session, sender.key_id)
        job = _repeated(session, sender, now)
        if job is None:
            _check_limit(session, sender)
            job = _create(session, new, sender.owner, now)
            advance(session, store, job, now)
            _remember(session, sender, job, now)
        return _view(session, job)


def read(database: Database, owner: str, job_id: str) -> JobView:
    """The job. Raises NotFound."""
    with database.snapshot() as session:
        return _view(session, _owned(session, owner, job_id))


def read_page(
    database: Database, owner: str, page: Page, metadata: Mapping[str, str] | None = None
) -> tuple[list[JobView], bool]:
    """Jobs that have all of `metadata`, and whether there are more."""
    with database.snapshot() as session:
        jobs, more = repository.jobs(session, owner, page, metadata or {})
        return _views(session, jobs), more


def read_events(database: Database, owner: str, job_id: str, page: Page) -> tuple[list[Event], bool]:
    """The job's events. Raises NotFound."""
    with database.snapshot() as session:
        _owned(session, owner, job_id)
        return repository.events(session, job_id, page)


def read_artifact(database: Database, owner: str, artifact_id: str) -> Artifact:
    """One file that a stage wrote. Raises NotFound."""
    with database.snapshot() as session:
        artifact = repository.artifact(session, owner, artifact_id)
        if artifact is None:
            raise NotFound(f"No artifact {artifact_id!r}.")
        return artifact


def cancel(database: Database, owner: str, job_id: str) -> JobView:
    """Ends a job: what has not started never will, what runs is told with its next heartbeat, and the job is
    `cancelled` once it stopped. Once more changes nothing; of a job that ended otherwise it is a Conflict."""
    with database.transaction() as session:
        job = _locked(session, owner, job_id)
        if job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            raise Conflict(f"The job has already {job.status.value}: there is nothing to cancel.")
        if not job.cancel_requested:
            now = database.now()
            job.cancel_requested = True
            add_event(session, job, now, "info", "Cancelling the job.", {})
            cancel_unstarted(session, job, now)
            settle(session, job, now)
        return _view(session, job)


def retry(database: Database, store: Store, owner: str, job_id: str) -> JobView:
    """Runs a failed or cancelled job again from where it ended. Raises Conflict for any other job."""
    with database.transaction() as session:
        job, now = _locked(session, owner, job_id), database.now()
        stages = repository.stages(session, [job.id])
        if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise Conflict(f"The job is {job.status.value}: only a failed or cancelled job can be retried.")
        if any(stage.status is StageStatus.RUNNING for stage in stages):
            raise Conflict("A stage of the job is still stopping: retry in a moment.")
        job.status, job.finished_at, job.error = move(job.status, JobStatus.QUEUED), None, None
        job.cancel_requested = False
        for stage in stages:
            _reset(stage)
        session.flush()
        add_event(session, job, now, "info", "The job runs again from where it ended.", {})
        advance(session, store, job, now)
        return _view(session, job)


def _owned(session: Session, owner: str, job_id: str) -> Job:
    job = repository.job(session, owner, job_id)
    if job is None:
        raise NotFound(f"No fine-tuning job {job_id!r}.")
    return job


def _locked(session: Session, owner: str, job_id: str) -> Job:
    locked = repository.lock_job(session, _owned(session, owner, job_id).id)
    assert locked is not None
    return locked


def _reset(stage: Stage) -> None:
    if stage.status in (StageStatus.FAILED, StageStatus.CANCELLED):
        stage.status = move(stage.status, StageStatus.WAITING)
        stage.attempt, stage.error, stage.finished_at = 0, None, None
        stage.step = stage.total = stage.resumed_step = None


def _view(session: Session, job: Job) -> JobView:
    return _views(session, [job])[0]


def _views(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    session.flush()
    stages = repository.stages(session, [job.id for job in jobs])
    artifacts = repository.artifacts(session, [stage.id for stage in stages])
    views = []
    for job in jobs:
        own = tuple(stage for stage in stages if stage.job_id == job.id)
        names = {stage.id for stage in own}
        earlier = {} if job.status in JOB_ENDED else repository.earlier_seconds(session, job)
        views.append(JobView(job, own, tuple(row for row in artifacts if row.stage_id in names), earlier))
    return views


# --- submitting


def _token(sender: Sender) -> str:
    """Under what a submit is remembered: the client's own key, or else the body."""
    return f"key:{sender.idempotency_key}" if sender.idempotency_key else f"body:{sender.body_hash}"


def _repeated(session: Session, sender: Sender, now: int) -> Job | None:
    earlier = repository.accepted(session, sender.key_id, _token(sender))
    if earlier is None:
        return None
    if sender.idempotency_key and earlier.body_hash != sender.body_hash:
        raise InvalidRequest(
            "This Idempotency-Key was sent before with another body: use a new key for a new request.",
            "Idempotency-Key",
            "idempotency_key_reused",
        )
    fresh = sender.is_retry and now - earlier.created_at <= sender.retry_window
    return repository.job(session, sender.owner, earlier.job_id) if sender.idempotency_key or fresh else None


def _remember(session: Session, sender: Sender, job: Job, now: int) -> None:
    token = Idempotency(key_id=sender.key_id, token=_token(sender), body_hash=sender.body_hash, job_id=job.id)
    token.created_at = now
    session.flush()  # the job first: the token's row refers to it
    session.merge(token)


def _check_limit(session: Session, sender: Sender) -> None:
    if repository.count_active_jobs(session, sender.owner) >= sender.max_active_jobs:
        raise TooMany(f"You have {sender.max_active_jobs} unfinished jobs: wait for one to end, or cancel one.")


def _create(session: Session, new: NewJob, owner: str, now: int) -> Job:
    model, sources, data = _resolve(session, owner, new, now)
    planned = plan(new.method, data, new.stages, new.hyperparameters, new.seed)
    job = Job(id=new_id("ftjob"), owner=owner, created_at=now, status=JobStatus.QUEUED, model=model.id)
    job.training_file, job.validation_file, job.corrections_file = (
        new.training_file,
        new.validation_file,
        new.corrections_file,
    )
    job.sources, job.seed, job.suffix = sources, new.seed, new.suffix
    job.user_metadata = dict(new.metadata) if new.metadata is not None else None
    job.method = {"type": new.method, "hyperparameters": dict(new.hyperparameters), "stages": _settings(planned)}
    job.result_files, job.cancel_requested, job.event_count = [], False, 0
    session.add(job)
    session.flush()
    session.add_all(_stage(job, position, stage) for position, stage in enumerate(planned))
    session.flush()
    names = ", ".join(stage.name for stage in planned)
    add_event(session, job, now, "info", f"The job was accepted. It runs {names}.", {})
    return job


def _settings(planned: Sequence[PlannedStage]) -> dict[str, Any]:
    return {stage.name: stage.config.model_dump(mode="json") for stage in planned}


def _stage(job: Job, position: int, planned: PlannedStage) -> Stage:
    return Stage(
        id=new_id("stage"),
        job_id=job.id,
        position=position,
        name=planned.name,
        status=StageStatus.WAITING,
        config=planned.config.model_dump(mode="json"),
        inputs=dict(planned.inputs),
    )


def _resolve(session: Session, owner: str, new: NewJob, now: int) -> tuple[Model, dict[str, list[Any]], Data]:
    """What the job refers to, as it is now: the model, the content of each source, and what the pipeline must know."""
    model = repository.model(session, owner, new.model)
    if model is None and ("://" in new.model or new.model.startswith(("/", ".", "~"))):
        raise InvalidRequest(
            "A job starts from a registered model, never from a URL or a path: GET /v1/models.", "model"
        )
    if model is None:
        raise NotFound(f"The model {new.model!r} does not exist.", "model", "model_not_found")
    wanted = {
        "training_file": new.training_file,
        "validation_file": new.validation_file,
        "corrections_file": new.corrections_file,
    }
    files = {
        param: _file(session, owner, file_id, param, now) for param, file_id in wanted.items() if file_id is not None
    }
    if "corrections_file" in files and files["corrections_file"].format != "corrections":
        found = files["corrections_file"].format
        raise InvalidRequest(f"The corrections file must hold corrections; it holds {found}.", "corrections_file")
    sources: dict[str, list[Any]] = {param: [["data.jsonl", file.sha256, file.bytes]] for param, file in files.items()}
    sources["model"] = [[file["path"], file["sha256"], file["bytes"]] for file in model.files]
    training, validation = files["training_file"], files.get("validation_file")
    data = Data(
        _format(training),
        tuple(training.lines_without_solution),
        None if validation is None else _format(validation),
        "corrections_file" in files,
    )
    return model, sources, data


def _file(session: Session, owner: str, file_id: str, param: str, now: int) -> File:
    file = repository.file(session, owner, file_id, now)
    if file is None:
        raise NotFound(f"No file {file_id!r}.", param, "file_not_found")
    if file.purpose != "fine-tune":
        raise InvalidRequest(f"The file's purpose is {file.purpose}; upload one with purpose fine-tune.", param)
    if file.status == "error":
        raise InvalidRequest(f"The file cannot be used. {file.status_details}", param, "invalid_training_file")
    return file


def _format(file: File) -> Format:
    for known in get_args(Format):
        if file.format == known:
            return known  # type: ignore[no-any-return]  # get_args forgets the literal's type
    raise InvalidRequest(f"The file's format {file.format!r} is not known.", "training_file")
