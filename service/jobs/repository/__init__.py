"""Every query of the service, and the one guarded write. Nothing here decides or commits.

Here are those about files, models, jobs, stages and workers; beside it, a file each, those about one thing alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Update, delete, func, literal, or_, select, update
from sqlalchemy.orm import Session, aliased

from service.jobs.lifecycle import JOB_ENDED, JobStatus, StageStatus, stage_sources
from service.jobs.repository.paging import Page as Page
from service.jobs.repository.paging import columns_of, part, plain, split
from service.jobs.repository.paging import paged as paged
from service.jobs.repository.paging import unknown_place as unknown_place
from service.jobs.tables import (
    Artifact,
    Event,
    File,
    Job,
    Lease,
    Model,
    Stage,
    Worker,
)

_RECENT_JOBS = 20
IN_FLIGHT = (StageStatus.DISPATCHED, StageStatus.RUNNING)


# --- files and models


def file(session: Session, owner: str, file_id: str, now: int) -> File | None:
    return session.scalar(select(File).where(File.id == file_id, File.owner == owner, _unexpired(now)))


def files(
    session: Session, owner: str, page: Page, purpose: str | None, sha256: str | None, now: int
) -> tuple[list[File], bool]:
    query = select(File).where(File.owner == owner, _unexpired(now))
    query = query if purpose is None else query.where(File.purpose == purpose)
    query = query if sha256 is None else query.where(File.sha256 == sha256)
    return paged(session, query, File.id, "file", page)


def model(session: Session, owner: str, name: str) -> Model | None:
    return session.scalar(select(Model).where(Model.id == name, visible(owner)))


def models(session: Session, owner: str) -> Sequence[Model]:
    return session.scalars(select(Model).where(visible(owner)).order_by(Model.id)).all()


def models_of_job(session: Session, owner: str, job_id: str) -> Sequence[Model]:
    return session.scalars(select(Model).where(Model.job_id == job_id, Model.owner == owner)).all()


def model_by_name(session: Session, name: str) -> Model | None:
    """Whoever owns it: names are unique."""
    return session.get(Model, name)


def _unexpired(now: int) -> Any:
    return or_(File.expires_at.is_(None), File.expires_at > now)


def visible(owner: str) -> Any:
    """The owner's models and everyone's."""
    return or_(Model.owner == owner, Model.owner.is_(None))


# --- jobs


def job(session: Session, owner: str, job_id: str) -> Job | None:
    return session.scalar(select(Job).where(Job.id == job_id, Job.owner == owner))


def jobs_shown(session: Session, owner: str, page: Page, metadata: Mapping[str, str]) -> tuple[list[Job], bool]:
    """Jobs of a list, without their sources: plain rows with a job's columns, of which no change would be noticed."""
    query = columns_of(Job, "sources").where(Job.owner == owner)
    for name, value in metadata.items():
        query = query.where(_has_pair(session, name, value))
    return split(plain(session, part(session, query, Job.id, "ftjob", page)), page)


def _has_pair(session: Session, name: str, value: str) -> ColumnElement[bool]:
    """Whether the job's metadata has this very pair. The name is compared as a value, never read as a path: a path
    would need quoting, and SQLite and PostgreSQL quote differently."""
    each = func.json_each if session.get_bind().dialect.name == "sqlite" else func.json_each_text
    pair = each(Job.user_metadata).table_valued("key", "value").alias()
    return select(literal(1)).select_from(pair).where(pair.c.key == name, pair.c.value == value).exists()


def lock_job(session: Session, job_id: str) -> Job | None:
    """The job's present row; other verbs on it wait until this transaction ends."""
    query = select(Job).where(Job.id == job_id).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def lock_job_of(session: Session, stage_id: str) -> Job | None:
    """The same of the stage's job: no stage ever changes its job."""
    query = select(Job).join(Stage, Stage.job_id == Job.id).where(Stage.id == stage_id).with_for_update(of=Job)
    return session.scalar(query.execution_options(populate_existing=True))


def wishes(session: Session, stage_id: str) -> tuple[bool, bool, bool]:
    """Of the stage's job: whether it was cancelled or has ended, whether it is paused, and whether its stages have run
    for as long as they may."""
    each = aliased(Stage)
    ran = select(func.sum(each.ran_seconds)).where(each.job_id == Job.id).scalar_subquery()
    query = select(Job.cancel_requested, Job.status, ran >= Job.max_seconds)
    cancelled, status, over = session.execute(
        query.join(Stage, Stage.job_id == Job.id).where(Stage.id == stage_id)
    ).one()
    return cancelled or status in JOB_ENDED, status is JobStatus.PAUSED, bool(over)


def count_active_jobs(session: Session, owner: str) -> int:
    active = Job.status.in_([status for status in JobStatus if status not in JOB_ENDED])
    theirs = Job.owner.concat("") == owner  # no index of owners: it would lead through all that have ended
    return session.scalar(select(func.count()).select_from(Job).where(active, theirs)) or 0


def events(session: Session, job_id: str, page: Page) -> tuple[list[Event], bool]:
    """In the order of `seq`, which no clock can disturb."""
    return paged(session, select(Event).where(Event.job_id == job_id), Event.seq, "ftevent", page)


def events_behind(session: Session, job_id: str, seq: int, most: int) -> list[Event]:
    query = select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(most)
    return list(session.scalars(query))


def event_seq(session: Session, job_id: str, event_id: str) -> int | None:
    return session.scalar(select(Event.seq).where(Event.job_id == job_id, Event.id == event_id))


def counts(session: Session, job_ids: Sequence[str]) -> Sequence[tuple[str, int, JobStatus]]:
    """Of each job its number of events and its status."""
    rows = session.execute(select(Job.id, Job.event_count, Job.status).where(Job.id.in_(job_ids)))
    return [(row.id, row.event_count, row.status) for row in rows]


def metrics(
    session: Session, job_id: str, seqs: Sequence[int] | None = None
) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(seq, data, created_at) of the events that told metrics, of all or of these, in the order in which they were
    told; read as they are gone through."""
    query = select(Event.seq, Event.data, Event.created_at).where(Event.job_id == job_id, Event.type == "metrics")
    query = query if seqs is None else query.where(Event.seq.in_(seqs))
    yield from map(tuple, session.execute(query.order_by(Event.seq).execution_options(yield_per=1000)))


# --- stages


def stage(session: Session, stage_id: str) -> Stage | None:
    return session.scalar(select(Stage).where(Stage.id == stage_id).execution_options(populate_existing=True))


def stages(session: Session, job_ids: Sequence[str]) -> Sequence[Stage]:
    """The stages of these jobs, each job's in the order in which they can run."""
    query = select(Stage).where(Stage.job_id.in_(job_ids)).order_by(Stage.job_id, Stage.position)
    return session.scalars(query.execution_options(populate_existing=True)).all()


def stage_ids(session: Session, job_id: str) -> dict[str, str]:
    """The ids of the job's stages, by their names."""
    return {row.name: row.id for row in session.execute(select(Stage.name, Stage.id).where(Stage.job_id == job_id))}


def stages_shown(session: Session, job_ids: Sequence[str]) -> Sequence[Stage]:
    """The same for a list, as plain rows: without what only runs a stage, its settings, which the job shows, and its
    inputs; and without its attempts."""
    stages = Stage.__table__.columns
    query = columns_of(Stage, "config", "inputs", "attempts").where(stages.job_id.in_(job_ids))
    return plain(session, query.order_by(stages.job_id, stages.position))


def stages_under_way(session: Session, worker_id: str | None = None) -> Sequence[Stage]:
    """The stages that were given to a worker, this one or any, and have not ended."""
    query = select(Stage).where(Stage.status.in_(IN_FLIGHT)).order_by(Stage.job_id, Stage.position)
    query = query if worker_id is None else query.where(Stage.worker == worker_id)
    return session.scalars(query.execution_options(populate_existing=True)).all()


def succeeded_stages(session: Session, owner: str, digest: str) -> Sequence[Stage]:
    """The owner's latest few stages with this very result: that another owner has it, too, must not show."""
    query = select(Stage).join(Job, Job.id == Stage.job_id).where(Job.owner == owner)
    query = query.where(Stage.digest == digest, Stage.status == StageStatus.SUCCEEDED)
    return session.scalars(query.order_by(Stage.id.desc()).limit(3)).all()


def earlier_seconds(session: Session, owner: str, model: str, training_file: str) -> dict[str, int]:
    """How long each stage took when the owner last computed it from this model and file, as far as that is to be found
    in the latest few jobs of theirs that began."""
    same = (Job.owner == owner, Job.model == model, Job.training_file == training_file)
    recent = select(Job.id).where(*same, Job.status != JobStatus.QUEUED).order_by(Job.id.desc()).limit(_RECENT_JOBS)
    computed = (Stage.job_id.in_(recent), Stage.reused_from.is_(None))
    query = select(Stage.name, Stage.status, Stage.seconds).where(*computed).order_by(Stage.id)
    found = session.execute(query)  # statuses are told apart here: their index would lead through every job there is
    return {
        name: round(seconds)
        for name, status, seconds in found
        if status is StageStatus.SUCCEEDED and seconds is not None
    }


def move_stage(session: Session, stage_id: str, epoch: int, target: StageStatus, /, **values: Any) -> bool:
    """THE fence: the stage becomes `target` only where its epoch is `epoch` and the lifecycle has the move."""
    return guarded_update(session, stage_id, epoch, stage_sources(target), status=target, **values)


def take_stage(
    session: Session, stage_id: str, epoch: int, worker: str, codes: Collection[str], /, **values: Any
) -> Stage | None:
    """The fence of who claims: the stage runs, as it is then, where besides it was given to this worker and planned for
    one of these codes."""
    guard = _guard(stage_id, epoch, stage_sources(StageStatus.RUNNING))
    guard = guard.where(Stage.worker == worker, Stage.code.in_(codes))
    taken = guard.values(status=StageStatus.RUNNING, **values).returning(Stage)
    return session.scalar(taken.execution_options(synchronize_session=False, populate_existing=True))


def guarded_update(
    session: Session, stage_id: str, epoch: int, statuses: Sequence[StageStatus], /, **values: Any
) -> bool:
    """Compare-and-set: changes the stage only where its epoch and status are still as expected."""
    guard = _guard(stage_id, epoch, statuses)
    result = session.execute(guard.values(**values).execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount == 1


def _guard(stage_id: str, epoch: int, statuses: Sequence[StageStatus]) -> Update:
    return update(Stage).where(Stage.id == stage_id, Stage.epoch == epoch, Stage.status.in_(statuses))


def artifacts(session: Session, stage_ids: Sequence[str]) -> Sequence[Artifact]:
    query = select(Artifact).where(Artifact.stage_id.in_(stage_ids))
    return session.scalars(query.order_by(Artifact.stage_id, Artifact.output, Artifact.path)).all()


def artifact(session: Session, owner: str, artifact_id: str) -> Artifact | None:
    query = select(Artifact).join(Stage, Stage.id == Artifact.stage_id).join(Job, Job.id == Stage.job_id)
    return session.scalar(query.where(Artifact.id == artifact_id, Job.owner == owner))


# --- workers


def workers(session: Session) -> Sequence[Worker]:
    return session.scalars(select(Worker).order_by(Worker.id)).all()


def lock_worker(session: Session, worker_id: str) -> Worker | None:
    """The worker's present row; whatever else is given to it waits until this transaction ends."""
    query = select(Worker).where(Worker.id == worker_id).with_for_update()
    return session.scalar(query.execution_options(populate_existing=True))


def lease(session: Session, name: str) -> Lease:
    """The lease's row, which a migration made."""
    return session.scalars(select(Lease).where(Lease.name == name)).one()


def share_lease(session: Session, name: str) -> Lease:
    """The same, and nobody takes it or gives it back until this transaction ends."""
    query = select(Lease).where(Lease.name == name).with_for_update(read=True)
    return session.scalars(query.execution_options(populate_existing=True)).one()


def lock_lease(session: Session, name: str) -> Lease:
    """The lease's present row, which a migration made; nobody else takes it until this transaction ends."""
    query = select(Lease).where(Lease.name == name).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def delete_worker(session: Session, worker_id: str) -> None:
    session.execute(delete(Worker).where(Worker.id == worker_id))
