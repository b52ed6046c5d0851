"""Queries about checkpoints that are kept in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session

from service.jobs.lifecycle import StageStatus
from service.jobs.tables import Artifact, Job, KeptCheckpoint, Stage


def of_work(session: Session, work: str) -> Sequence[KeptCheckpoint]:
    """Those from which this work can go on, the furthest first."""
    query = select(KeptCheckpoint).where(KeptCheckpoint.work == work)
    return session.scalars(query.order_by(KeptCheckpoint.step.desc(), KeptCheckpoint.epoch.desc())).all()


def of_stage(session: Session, stage_id: str) -> Sequence[KeptCheckpoint]:
    """Those that the stage left, the newest first: of one epoch, and of later epochs, whatever any clock said."""
    query = select(KeptCheckpoint).where(KeptCheckpoint.stage_id == stage_id)
    return session.scalars(query.order_by(KeptCheckpoint.epoch.desc(), KeptCheckpoint.step.desc())).all()


def drop(session: Session, stage_ids: Sequence[str]) -> None:
    session.execute(delete(KeptCheckpoint).where(KeptCheckpoint.stage_id.in_(stage_ids)))


def drop_over(session: Session, failed_before: int) -> None:
    """Forgets those of stages that nobody will go on with."""
    failed = and_(Stage.status == StageStatus.FAILED, Stage.finished_at < failed_before)
    over = select(Stage.id).where(or_(Stage.status.in_((StageStatus.SUCCEEDED, StageStatus.CANCELLED)), failed))
    session.execute(delete(KeptCheckpoint).where(KeptCheckpoint.stage_id.in_(over)))


def holders(session: Session) -> Iterator[tuple[str, str]]:
    """(owner, sha256) of every content of theirs."""
    query = select(Job.owner, KeptCheckpoint.files).join(Stage, Stage.id == KeptCheckpoint.stage_id)
    for owner, files in session.execute(query.join(Job, Job.id == Stage.job_id)):
        yield from ((owner, sha256) for _, sha256, _ in files)


def unheld(session: Session, contents: set[str]) -> set[str]:
    """Which of them no checkpoint needs, and no result is."""
    needed = {sha256 for files in session.scalars(select(KeptCheckpoint.files)) for _, sha256, _ in files}
    results = session.scalars(select(Artifact.sha256).where(Artifact.sha256.in_(contents)))
    return contents - needed - set(results)


def oldest(session: Session) -> int | None:
    """Of the running stages that left a checkpoint, when the newest one that is kept was kept, or the stage claimed:
    the least of these times."""
    newest = select(func.max(KeptCheckpoint.created_at)).where(KeptCheckpoint.stage_id == Stage.id)
    since = func.coalesce(newest.correlate(Stage).scalar_subquery(), Stage.claimed_at)
    running = (Stage.status == StageStatus.RUNNING, Stage.saved_step.is_not(None))
    return session.scalar(select(func.min(since)).where(*running))
