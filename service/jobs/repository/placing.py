"""Queries of the dispatcher and the reaper: the stages that are not at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session, aliased

from service.jobs.lifecycle import StageStatus
from service.jobs.repository import IN_FLIGHT
from service.jobs.tables import Job, Stage

_Other, _Others = aliased(Stage), aliased(Job)
"""Once: an alias takes as long to make as a query to ask."""


def under_way(session: Session) -> Sequence[Row[Any]]:
    """(id, epoch, beat, status, needs, code, worker, devices, owner, priority) of the stages that were given to a
    worker and have not ended, oldest job first."""
    where = (Stage.worker, Stage.devices)
    columns = (Stage.id, Stage.epoch, Stage.beat, Stage.status, Stage.needs, Stage.code, *where)
    query = select(*columns, Job.owner, Job.priority).join(Job, Job.id == Stage.job_id)
    return session.execute(query.where(Stage.status.in_(IN_FLIGHT)).order_by(Stage.job_id, Stage.position)).all()


def ready_stages(session: Session, most: int) -> Sequence[Row[Any]]:
    """(id, epoch, needs, code, digest, owner, priority), oldest job first, without those whose very result another
    stage of the owner's is making at this moment; the first `most` of each line, however long it is."""
    found = [row for line in (*_lines(session), None) for row in _of_line(session, line, most)]
    return sorted(found, key=lambda row: (row.job_id, row.position))


def _lines(session: Session) -> Sequence[str]:
    """The lines in which stages wait: the next one is looked up behind the last, so that none is read through."""
    waits = Stage.status == StageStatus.READY
    lines = select(func.min(Stage.line).label("line")).where(waits).cte(recursive=True)
    behind = select(func.min(Stage.line)).where(waits, Stage.line > lines.c.line).scalar_subquery()
    lines = lines.union_all(select(behind).where(lines.c.line.is_not(None)))
    return session.scalars(select(lines.c.line).where(lines.c.line.is_not(None))).all()


def _of_line(session: Session, line: str | None, most: int) -> Sequence[Row[Any]]:
    being_made = select(_Other.id).join(_Others, _Others.id == _Other.job_id)
    same = _Others.owner.concat("") == Job.owner  # no index of owners: PostgreSQL would look through all of their jobs
    being_made = being_made.where(_Other.digest == Stage.digest, _Other.status.in_(IN_FLIGHT), same)
    being_made = being_made.correlate(Stage, Job)
    columns = (Stage.id, Stage.epoch, Stage.needs, Stage.code, Stage.digest, Stage.job_id, Stage.position)
    ready = select(*columns, Job.owner, Job.priority).join(Job, Job.id == Stage.job_id)
    here = Stage.line.is_(None) if line is None else Stage.line.between(line, line)
    ready = ready.where(Stage.status == StageStatus.READY, here, ~being_made.exists())
    # in the index's own order: PostgreSQL would else read all stages in the order of their jobs, as it would of a line
    # that is told by `=`, which it leaves out of the order
    return session.execute(ready.order_by(Stage.line, Stage.job_id, Stage.position).limit(most)).all()
