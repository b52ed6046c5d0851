"""Queries that count, over all owners and of one."""

from __future__ import annotations

from dataclasses import dataclass

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
    seconds = func.sum(case((computed, Stage.seconds), else_=0))
    query = select(Stage.name, seconds, func.sum(case((computed, 1), else_=0)), func.sum(Stage.attempt))
    return {
        name: (int(total), int(done), int(tries))
        for name, total, done, tries in session.execute(query.group_by(Stage.name))
    }


def file_bytes(session: Session) -> int:
    return int(session.scalar(select(func.sum(File.bytes))) or 0)


def artifact_bytes(session: Session) -> int:
    return int(session.scalar(select(func.sum(Artifact.bytes))) or 0)


# --- of one owner


@dataclass(frozen=True)
class StageTime:
    """What an owner's stages of one name took: how many were computed, and in how many seconds."""

    name: str
    count: int
    seconds: int
    device_seconds: int


def jobs_of(session: Session, owner: str) -> dict[str, int]:
    """By status."""
    rows = session.execute(select(Job.status, func.count()).where(Job.owner == owner).group_by(Job.status))
    return {status.value: count for status, count in rows}


def time_of(session: Session, owner: str, since: int) -> list[StageTime]:
    """Of jobs made since then; the longest first. What runs still, or was reused, counts nothing."""
    computed = (Stage.reused_from.is_(None), Stage.started_at.is_not(None), Stage.finished_at.is_not(None))
    devices = case((Stage.devices.is_(None), 0), else_=func.json_array_length(Stage.devices))
    query = select(Stage.name, func.count(), func.sum(Stage.seconds), func.sum(Stage.seconds * devices))
    query = query.join(Job, Job.id == Stage.job_id).where(Job.owner == owner, Job.created_at >= since, *computed)
    rows = session.execute(query.group_by(Stage.name))
    found = [StageTime(name, count, int(worked or 0), int(held or 0)) for name, count, worked, held in rows]
    return sorted(found, key=lambda row: -row.seconds)
