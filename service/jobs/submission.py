"""A job on its way in: what is asked for, whether it was asked before, and whether it can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from sqlalchemy.orm import Session

from allo_engine.needs import Needs, needs_of
from allo_engine.pipeline import Data, Format, Method, PlannedStage, plan, warnings
from service.jobs import repository
from service.jobs.access import trackers, tracking
from service.jobs.access.trackers import Integration
from service.jobs.data import quota
from service.jobs.errors import Forbidden, InvalidRequest, NotFound, TooMany
from service.jobs.ids import new_id
from service.jobs.lifecycle import STAGE_ENDED, JobStatus, Priority, StageStatus
from service.jobs.progression import add_event
from service.jobs.registry.masks import find_masks
from service.jobs.registry.rewriters import check_teachers, find_rewriter
from service.jobs.running.placement import Offer, missing
from service.jobs.tables import File, Job, Model, Stage
from service.storage.store import Store


@dataclass(frozen=True)
class NewJob:
    """A job as it is asked for. `masks` names an earlier job, or masks that it made, to train in; `stages` and
    `hyperparameters` are checked by the pipeline itself. `max_seconds` is how long its stages may run, together: time
    on workers, so that neither a queue nor a pause nor a clock ends it."""

    model: str
    training_file: str
    validation_file: str | None = None
    corrections_file: str | None = None
    masks: str | None = None
    retention_file: str | None = None
    method: Method = "supervised"
    stages: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    suffix: str | None = None
    metadata: Mapping[str, str] | None = None
    integrations: Sequence[Integration] = ()
    priority: Priority = Priority.NORMAL
    max_seconds: int | None = None


@dataclass(frozen=True)
class Sender:
    """Who submits, and what is allowed; `admin` where the key has that scope."""

    owner: str
    max_active_jobs: int = 100
    teacher_hosts: str = ""
    max_owner_bytes: int = 0
    trackers: str = ""
    admin: bool = False


@dataclass(frozen=True)
class Admitted:
    """A job that may run: what it begins with, its stages in running order, and what each of them needs."""

    new: NewJob
    owner: str
    model: Model
    rewriter: Model | None
    sources: Mapping[str, list[Any]]
    planned: Sequence[PlannedStage]
    needs: Mapping[str, Needs]


_UNFIT = "invalid_training_file"
"""The code of a file that cannot be used as it is meant to be."""


def check_limit(session: Session, sender: Sender, now: int, more: int = 1) -> None:
    """Raises TooMany where the owner would have more unfinished jobs than allowed with so many more, QuotaExceeded
    where there is no room for bytes."""
    active, most = repository.count_active_jobs(session, sender.owner), sender.max_active_jobs
    if active + more > most:
        asked = "" if more == 1 else f" of {most}, and this would be {more} more"
        raise TooMany(f"You have {active} unfinished jobs{asked}: wait for one to end, or cancel one.")
    quota.check(session, sender.owner, sender.max_owner_bytes, now, more=1)


def admit(session: Session, store: Store, new: NewJob, sender: Sender, now: int) -> Admitted:
    """What a job would be; nothing is written. Raises PlanError, InvalidRequest or NotFound for what cannot run."""
    owner = sender.owner
    model, files = _model(session, owner, new.model), _files(session, owner, new, now)
    masks = {} if new.masks is None else {"masks": find_masks(session, owner, new.masks)}
    planned = plan(new.method, _data(files, bool(masks)), new.stages, new.hyperparameters, new.seed)
    check_teachers(new.method, planned, sender.teacher_hosts)
    trackers.check(new.integrations, sender.trackers)
    check_priority(new.priority, sender.admin)
    rewriter = find_rewriter(session, store, owner, planned, model)
    needs = needs_of(planned, shape_of(model), shape_of(rewriter or model))
    return Admitted(new, owner, model, rewriter, {**_sources(model, rewriter, files), **masks}, planned, needs)


def check_priority(priority: Priority, admin: bool) -> None:
    """Raises Forbidden: what goes before everybody else's work is not for everybody to say."""
    if priority > Priority.NORMAL and not admin:
        raise Forbidden(f"Priority {priority.word} is for keys with scope admin: take normal or low.", "priority")


def create(session: Session, admitted: Admitted, now: int) -> Job:
    """The job's row, its stages' and its first event."""
    new, planned = admitted.new, admitted.planned
    job = Job(id=new_id("ftjob"), owner=admitted.owner, created_at=now, status=JobStatus.QUEUED, model=new.model)
    job.training_file, job.validation_file = new.training_file, new.validation_file
    job.corrections_file, job.masks = new.corrections_file, new.masks
    job.retention_file = new.retention_file
    job.sources, job.seed, job.suffix = dict(admitted.sources), new.seed, new.suffix
    job.user_metadata = dict(new.metadata) if new.metadata is not None else None
    job.priority, job.max_seconds = new.priority, new.max_seconds
    job.integrations = [dict(one) for one in new.integrations] or None
    job.method = {"type": new.method, "hyperparameters": dict(new.hyperparameters), "stages": settings_of(new, planned)}
    job.result_files, job.cancel_requested, job.event_count = [], False, 0
    session.add(job)
    session.flush()
    stages = [_stage(job, place, stage, admitted.needs[stage.name]) for place, stage in enumerate(planned)]
    session.add_all(stages)
    session.flush()
    tracking.begin(session, job, new.integrations, now)
    names = ", ".join(stage.name for stage in planned)
    add_event(session, job, now, "info", f"The job was accepted. It runs {names}.", {})
    for message in warnings(planned):
        add_event(session, job, now, "warn", message, {})
    return job


def tell_missing(session: Session, job: Job, stages: Sequence[Stage], offers: Sequence[Offer], now: int) -> None:
    """Warns of every stage that no worker can run. The job waits, and goes on by itself once one can."""
    left = [stage for stage in stages if stage.status not in STAGE_ENDED]
    lacks = {stage.name: missing(stage.name, Needs.read(stage.needs), offers) for stage in left}
    for message in dict.fromkeys(filter(None, lacks.values())):
        waiting = [name for name, lack in lacks.items() if lack == message]
        add_event(session, job, now, "warn", f"{message} The job waits for it.", {"stages": waiting})


def settings_of(new: NewJob, planned: Sequence[PlannedStage]) -> dict[str, Any]:
    """Of every stage, in full, as it has them in the first round; null where one is left out: whoever submits them
    again has the same job."""
    left_out: dict[str, Any] = {name: None for name, values in new.stages.items() if values is None}
    return left_out | {
        stage.kind: stage.config.model_dump(mode="json") for stage in planned if stage.name == stage.kind
    }


def _stage(job: Job, position: int, planned: PlannedStage, needs: Needs) -> Stage:
    return Stage(
        id=new_id("stage"),
        job_id=job.id,
        position=position,
        name=planned.name,
        status=StageStatus.WAITING,
        config=planned.config.model_dump(mode="json"),
        inputs=dict(planned.inputs),
        needs=needs.write(),
    )


def _model(session: Session, owner: str, name: str) -> Model:
    model = repository.model(session, owner, name)
    if model is not None:
        return model
    if "://" in name or name.startswith(("/", ".", "~")):
        message = "A job starts from a registered model, never from a URL or a path: GET /v1/models lists them."
        raise InvalidRequest(message, "model")
    raise NotFound(f"The model {name!r} does not exist.", "model", "model_not_found")


def _files(session: Session, owner: str, new: NewJob, now: int) -> dict[str, File]:
    """The job's files by the field that names them."""
    params = ("training_file", "validation_file", "corrections_file", "retention_file")
    given = {param: name for param in params if (name := getattr(new, param)) is not None}
    files = {param: usable_file(session, owner, name, param, now) for param, name in given.items()}
    if "corrections_file" in files and files["corrections_file"].format != "corrections":
        found = files["corrections_file"].format
        message = f"The corrections file must hold corrections; it holds {found}."
        raise InvalidRequest(message, "corrections_file", _UNFIT)
    return files


def _sources(model: Model, rewriter: Model | None, files: Mapping[str, File]) -> dict[str, list[Any]]:
    """The content behind every name that the job refers to, as it is now."""
    sources: dict[str, list[Any]] = {param: [["data.jsonl", *file.lines]] for param, file in files.items()}
    models = {"model": model, **({"rewriter": rewriter} if rewriter else {})}
    contents = {
        name: [[file["path"], file["sha256"], file["bytes"]] for file in found.files] for name, found in models.items()
    }
    return {**contents, **sources}


def shape_of(model: Model) -> dict[str, Any] | None:
    """The model's sizes, as far as a probe found them."""
    return (model.verdict or {}).get("shape")


def _data(files: Mapping[str, File], masks: bool) -> Data:
    """What the pipeline must know of the files."""
    training, validation, retention = (files.get(f"{name}_file") for name in ("training", "validation", "retention"))
    assert training is not None
    return Data(
        format=_format(training),
        lines_without_solution=tuple(training.lines_without_solution),
        validation=None if validation is None else _format(validation),
        corrections="corrections_file" in files,
        masks=masks,
        retention=None if retention is None else _format(retention),
    )


def usable_file(session: Session, owner: str, file_id: str, param: str, now: int) -> File:
    """A file that can be trained on. Raises NotFound, InvalidRequest."""
    file = repository.file(session, owner, file_id, now)
    if file is None:
        raise NotFound(f"No file {file_id!r}.", param, "file_not_found")
    if file.purpose != "fine-tune":
        raise InvalidRequest(f"The file's purpose is {file.purpose}; upload one with purpose fine-tune.", param, _UNFIT)
    if file.status == "error":
        raise InvalidRequest(f"The file cannot be used. {file.status_details}", param, _UNFIT)
    return file


def _format(file: File) -> Format:
    assert file.format in get_args(Format)  # a file without problems has one
    return cast(Format, file.format)
