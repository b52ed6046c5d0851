"""Queries about content: uploads and their parts, and who holds which blob."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, text, union, update
from sqlalchemy.orm import Session

from service.jobs.lifecycle import JOB_ENDED, JobStatus
from service.jobs.repository import kept
from service.jobs.tables import (
    Artifact,
    Event,
    Export,
    File,
    Job,
    Marker,
    Model,
    Stage,
    Tracking,
    Upload,
    UploadPart,
    WebhookDelivery,
)

# --- uploads


def upload(session: Session, owner: str, upload_id: str) -> Upload | None:
    return session.scalar(select(Upload).where(Upload.id == upload_id, Upload.owner == owner))


def lock_upload(session: Session, upload_id: str) -> Upload:
    """The upload's present row; other verbs on it wait until this transaction ends."""
    query = select(Upload).where(Upload.id == upload_id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def parts(session: Session, upload_id: str) -> Sequence[UploadPart]:
    """In the order in which they arrived."""
    return session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.id)).all()


def drop_parts(session: Session, upload_id: str) -> None:
    session.execute(delete(UploadPart).where(UploadPart.upload_id == upload_id))


def file_of(session: Session, upload: Upload) -> File | None:
    """The file that the upload became, if it did, and while it is there."""
    return None if upload.file_id is None else session.get(File, upload.file_id)


# --- who holds what


def holders(session: Session, retriable_since: int) -> Iterator[tuple[str | None, str]]:
    """(owner, sha256) of every content that something needs; without an owner it is everyone's.

    A job needs what it began with until it ends, and where it can be retried, has ended since `retriable_since`.
    """
    for owner, *named in session.execute(select(File.owner, File.sha256, File.report_sha256, File.data_sha256)):
        yield from ((owner, sha256) for sha256 in named if sha256)
    parts = select(Upload.owner, UploadPart.sha256).join(Upload, Upload.id == UploadPart.upload_id)
    yield from map(tuple, session.execute(parts))
    for named_files in (select(Model.owner, Model.files), select(Export.owner, Export.files)):
        for owner, files in session.execute(named_files):
            yield from ((owner, file["sha256"]) for file in files)
    retriable = and_(Job.status.in_((JobStatus.FAILED, JobStatus.CANCELLED)), Job.finished_at >= retriable_since)
    needing = select(Job.owner, Job.sources).where(or_(Job.status.not_in(JOB_ENDED), retriable))
    for owner, sources in session.execute(needing):
        yield from ((owner, sha256) for files in sources.values() for _, sha256, _ in files)
    yield from kept.holders(session)
    yield from ((None, sha256) for sha256 in session.scalars(select(Marker.sha256)))
    artifacts = select(Job.owner, Artifact.sha256).join(Stage, Stage.id == Artifact.stage_id)
    yield from map(tuple, session.execute(artifacts.join(Job, Job.id == Stage.job_id)))


def marker(session: Session) -> Marker | None:
    """What tells the service's store from others, once there is one."""
    return session.scalar(select(Marker))


def latest(session: Session, most: int) -> list[str]:
    """sha256 of contents that whoever has the database's own store has there: of the latest files, and of the latest
    models the first file, so many of each."""
    files = session.scalars(select(File.sha256).order_by(File.created_at.desc()).limit(most)).all()
    models = session.scalars(select(Model.files).order_by(Model.created_at.desc()).limit(most)).all()
    return sorted({*files, *(named[0]["sha256"] for named in models if named)})


def bytes_of(session: Session, owner: str, now: int) -> int:
    """What an owner takes of the disk: files, models, exports and what jobs wrote, and uploads that are under way as
    large as they are to be."""
    wrote = select(Artifact.sha256, Artifact.bytes).join(Stage, Stage.id == Artifact.stage_id)
    content = union(
        select(File.sha256, File.bytes).where(File.owner == owner),
        select(File.data_sha256, File.data_bytes).where(File.owner == owner),
        wrote.join(Job, Job.id == Stage.job_id).where(Job.owner == owner),
    ).subquery()
    begun = select(func.sum(Upload.bytes)).where(Upload.owner == owner, *_pending(now))
    registered = session.scalars(select(Model.files).where(Model.owner == owner, Model.job_id.is_(None)))
    exported = session.scalars(select(Export.files).where(Export.owner == owner))
    listed = sum(file["bytes"] for files in (*registered, *exported) for file in files)
    return int((session.scalar(select(func.sum(content.c.bytes))) or 0) + (session.scalar(begun) or 0) + listed)


def shares_of(session: Session, owner: str, now: int) -> dict[str, int]:
    """The same by what it is of. Content that is of several is a part of each."""
    wrote = select(Artifact.sha256, Artifact.bytes).join(Stage, Stage.id == Artifact.stage_id)
    wrote = wrote.join(Job, Job.id == Stage.job_id).where(Job.owner == owner)
    kept = select(File.sha256, File.bytes).where(File.owner == owner)
    read = select(File.data_sha256, File.data_bytes).where(File.owner == owner, File.data_sha256.is_not(None))
    begun = select(func.sum(Upload.bytes)).where(Upload.owner == owner, *_pending(now))
    registered = session.scalars(select(Model.files).where(Model.owner == owner, Model.job_id.is_(None)))
    exported = session.scalars(select(Export.files).where(Export.owner == owner))
    return {
        "files": _sum(session, union(kept, read)),
        "uploads under way": int(session.scalar(begun) or 0),
        "models": sum(file["bytes"] for files in registered for file in files),
        "results of jobs": _sum(session, wrote.distinct()),
        "other forms of models": sum(file["bytes"] for files in exported for file in files),
    }


def _sum(session: Session, content: Any) -> int:
    """Of (sha256, bytes)."""
    return int(session.scalar(select(func.sum(content.subquery().c[1]))) or 0)


def lock_owner(session: Session, owner: str) -> None:
    """Makes those that ask for room for one owner wait for each other; SQLite's writers do so anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:owner, 4119))"), {"owner": owner})


# --- what goes


def drop_expired(session: Session, now: int, refused_before: int) -> int:
    """Forgets files whose time is over, files that were refused before `refused_before`, and the parts of uploads that
    nobody completed; how many files and uploads."""
    refused = and_(File.status == "error", File.created_at < refused_before)
    files = session.scalars(select(File.id).where(or_(File.expires_at <= now, refused))).all()
    session.execute(delete(File).where(File.id.in_(files)))
    over = session.scalars(select(Upload.id).where(Upload.status == "pending", Upload.expires_at <= now)).all()
    session.execute(delete(UploadPart).where(UploadPart.upload_id.in_(over)))
    session.execute(update(Upload).where(Upload.id.in_(over)).values(status="expired"))
    return len(files) + len(over)


def namesakes(session: Session, model: Model) -> list[Model]:
    """The names under which the model's job left this very content, its own among them."""
    if model.job_id is None:
        return [model]
    found = session.scalars(select(Model).where(Model.job_id == model.job_id))
    return [other for other in found if other.files == model.files]


def erase_checkpoints(session: Session, model: Model) -> None:
    """Forgets what the stages wrote that left this very model, its sparse form too. Such a stage has no result any more
    that another one could take over."""
    wrote = select(Artifact).join(Stage, Stage.id == Artifact.stage_id)
    rows = session.scalars(wrote.where(Stage.job_id == model.job_id, Artifact.output == "checkpoint")).all()
    left = {(file["path"], file["sha256"]) for file in model.files}
    ids = {row.stage_id for row in rows}
    emptied = [id for id in ids if {(row.path, row.sha256) for row in rows if row.stage_id == id} == left]
    outputs = Artifact.output.in_(("checkpoint", "delta"))
    session.execute(delete(Artifact).where(Artifact.stage_id.in_(emptied), outputs))
    session.execute(update(Stage).where(Stage.id.in_(emptied)).values(digest=None))


def drop_results(session: Session, stages: Sequence[str], models: Sequence[str]) -> None:
    """Forgets what these stages made, and the models of these names with their exports."""
    session.execute(delete(Artifact).where(Artifact.stage_id.in_(stages)))
    session.execute(delete(Export).where(Export.model.in_(models)))
    session.execute(delete(Model).where(Model.id.in_(models)))


def drop_job(session: Session, job: Job) -> None:
    """Forgets a job and everything that is there for it alone."""
    stages, models = select(Stage.id).where(Stage.job_id == job.id), select(Model.id).where(Model.job_id == job.id)
    session.execute(delete(Artifact).where(Artifact.stage_id.in_(stages)))
    session.execute(delete(Export).where(Export.model.in_(models)))
    session.execute(delete(File).where(File.id.in_(job.result_files)))
    kept.drop(session, list(session.scalars(stages)))
    for rows in (Stage, Event, WebhookDelivery, Tracking, Model):
        session.execute(delete(rows).where(rows.job_id == job.id))
    session.delete(job)


def _pending(now: int) -> tuple[Any, ...]:
    return Upload.status == "pending", Upload.expires_at > now
