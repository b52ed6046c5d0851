"""Queries about what trackers are told of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from service.jobs.tables import Event, Job, Tracking


def get(session: Session, tracking_id: str, lock: bool = False) -> Tracking | None:
    query = select(Tracking).where(Tracking.id == tracking_id)
    query = query.with_for_update().execution_options(populate_existing=True) if lock else query
    return session.scalar(query)


def due(session: Session, tracker: str, now: int, most: int, lock: bool = False) -> Sequence[tuple[Tracking, Job]]:
    """The first that are due and have something new. With `lock` they are this transaction's alone, without those that
    are another's."""
    query = select(Tracking, Job).join(Job, Job.id == Tracking.job_id)
    query = query.where(Tracking.due_at <= now, Tracking.tracker == tracker, Job.event_count > Tracking.seq)
    query = query.order_by(Tracking.due_at).limit(most)
    if lock:
        query = query.with_for_update(skip_locked=True, of=Tracking)
    return [(row.Tracking, row.Job) for row in session.execute(query)]


def hurry(session: Session, job_id: str, now: int) -> None:
    """The job has ended or begins again: only what is under way, or failed lately, keeps its time."""
    at_rest = or_(Tracking.failures == 0, Tracking.due_at.is_(None))
    waiting = update(Tracking).where(Tracking.job_id == job_id, at_rest)
    session.execute(waiting.values(due_at=now).execution_options(synchronize_session=False))


def points_behind(session: Session, job_id: str, seq: int, most: int) -> list[tuple[int, dict[str, Any], int]]:
    """(seq, data, created_at) of the first events behind `seq` that told metrics."""
    query = select(Event.seq, Event.data, Event.created_at).where(Event.job_id == job_id, Event.seq > seq)
    query = query.where(Event.type == "metrics").order_by(Event.seq).limit(most)
    return [tuple(row) for row in session.execute(query)]
