"""Queries of the dispatcher and the reaper: the stages that are not at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, String, cast, func, select
from sqlalchemy.orm import Session, aliased, defer

from service.jobs.lifecycle import StageStatus
from service.jobs.repository import IN_FLIGHT
from service.jobs.tables import Job, Stage


def stages_by_status(session: Session, status: StageStatus) -> Sequence[tuple[Stage, str, int]]:
    """Each with its job's owner and priority, oldest job first, without what only runs it."""
    query = select(Stage, Job.owner, Job.priority).join(Job, Job.id == Stage.job_id).where(Stage.status == status)
    query = query.options(defer(Stage.config), defer(Stage.inputs)).order_by(Stage.job_id, Stage.position)
    return [(row[0], row[1], row[2]) for row in session.execute(query)]


def ready_stages(session: Session, most: int) -> Sequence[Row[Any]]:
    """(id, epoch, needs, code, digest, owner, priority), oldest job first, without those whose very result another
    stage of the owner's is making at this moment; of those that differ in none of owner, priority, needs and code the
    first `most`."""
    other, others = aliased(Stage), aliased(Job)
    being_made = select(other.id).join(others, others.id == other.job_id)
    being_made = being_made.where(
        other.digest == Stage.digest, other.status.in_(IN_FLIGHT), others.owner == Job.owner
    ).correlate(Stage, Job)
    line = (Job.owner, Job.priority, Stage.code, cast(Stage.needs, String))
    order = (Stage.job_id, Stage.position)
    place = func.row_number().over(partition_by=line, order_by=order).label("place")
    ready = select(Stage.id, Job.owner, Job.priority, place).join(Job, Job.id == Stage.job_id)
    lines = ready.where(Stage.status == StageStatus.READY, ~being_made.exists()).subquery()
    columns = (Stage.id, Stage.epoch, Stage.needs, Stage.code, Stage.digest, lines.c.owner, lines.c.priority)
    found = select(*columns).join(lines, lines.c.id == Stage.id).where(lines.c.place <= most)
    return session.execute(found.order_by(*order)).all()
