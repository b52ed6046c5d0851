"""Queries that count, over all owners."""

from __future__ import annotations

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from service.jobs.lifecycle import StageStatus
from service.jobs.tables import Artifact, File, Job, Stage

WAITING = (StageStatus.READY, StageStatus.DISPATCHED)


def jobs(session: Session) -> dict[str, int]:
    """By status."""
    rows = session.execute(select(Job.status, func.count()).group_by(Job.status))
    return {status.value: count for status, count in rows}


def stages(session: Session) -> dict[tuple[str, str], int]:
    """By name and status."""
    rows = session.execute(select(Stage.name, Stage.status, func.count()).group_by(Stage.name, Stage.status))
    return {(name, status.value): count for name, status, count in rows}


def queue(session: Session) -> tuple[int, int | None]:
    """How many stages wait for a worker, and when the oldest of their jobs was made."""
    query = select(func.count(), func.min(Job.created_at)).join(Stage, Stage.job_id == Job.id)
    depth, oldest = session.execute(query.where(Stage.status.in_(WAITING))).one()
    return depth, oldest


def work(session: Session) -> dict[str, tuple[int, int, int]]:
    """Of the stages of each name: seconds of those that were computed, how many were, and counted attempts of all."""
    computed = (Stage.status == StageStatus.SUCCEEDED) & Stage.reused_from.is_(None)
    seconds = func.sum(case((computed, Stage.finished_at - Stage.started_at), else_=0))
    query = select(Stage.name, seconds, func.sum(case((computed, 1), else_=0)), func.sum(Stage.attempt))
    return {
        name: (int(total), int(done), int(tries))
        for name, total, done, tries in session.execute(query.group_by(Stage.name))
    }


def file_bytes(session: Session) -> int:
    return int(session.scalar(select(func.sum(File.bytes))) or 0)


def artifact_bytes(session: Session) -> int:
    return int(session.scalar(select(func.sum(Artifact.bytes))) or 0)
