"""Queries about what a job told, for those who look at it, and of its next event."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ScalarSelect, case, func, or_, select
from sqlalchemy.orm import Session

from service.jobs.tables import Event
from service.jobs.tables.work import IS_MESSAGE


def messages(session: Session, job_id: str, before: int | None, most: int) -> list[Event]:
    """The newest events that are no metrics, of all or of those before number `before`, newest first."""
    query = select(Event).where(Event.job_id == job_id, IS_MESSAGE)
    query = query if before is None else query.where(Event.seq < before)
    return list(session.scalars(query.order_by(Event.seq.desc()).limit(most)))


def turns(session: Session, job_id: str, most: int) -> list[Event]:
    """The newest messages that tell of a stage's attempt, that it began or how it ended, in the order in which they
    were told."""
    tells = or_(*(Event.data[name].as_string().is_not(None) for name in ("attempt", "outcome", "code", "metrics")))
    query = select(Event).where(Event.job_id == job_id, IS_MESSAGE, tells)
    return list(session.scalars(query.order_by(Event.seq.desc()).limit(most)))[::-1]


def metric_places(session: Session, job_id: str) -> Iterator[tuple[int, str | None, str | None]]:
    """(seq, stage, step) of the events that told metrics, in the order in which they were told, without their
    figures. There may be a hundred thousand: they come as the table has them, past the mapper."""
    row = Event.__table__.c
    columns = row.seq, row.data["stage"].as_string(), row.data["step"].as_string()
    query = select(*columns).where(row.job_id == job_id, row.type == "metrics").order_by(row.seq)
    yield from map(tuple, session.connection().execute(query))


def no_earlier(now: int, job_id: str, seq: int) -> ScalarSelect[int]:
    """Now, or the time of that event, where it has a later one: part of what is written, and asked by the way."""
    its = func.max(Event.created_at)
    return select(case((its > now, its), else_=now)).where(Event.job_id == job_id, Event.seq == seq).scalar_subquery()
