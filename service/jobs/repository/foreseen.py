"""Queries about what was expected of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.jobs.lifecycle import StageStatus
from service.jobs.tables import Job, Stage

_RECENT_JOBS = 50


def note(session: Session, job_id: str, estimate: Mapping[str, Any]) -> None:
    session.execute(update(Job).where(Job.id == job_id).values(estimate=dict(estimate)))


def outcomes(session: Session, owner: str) -> Sequence[tuple[Mapping[str, Any], Stage]]:
    """The stages that the owner's latest jobs computed to their end, each with what was expected of its job."""
    recent = select(Job.id).where(Job.owner == owner).order_by(Job.id.desc()).limit(_RECENT_JOBS)
    query = select(Job.estimate, Stage).join(Stage, Stage.job_id == Job.id)
    query = query.where(Job.id.in_(recent), Job.estimate.is_not(None), Stage.reused_from.is_(None))
    rows = session.execute(query.order_by(Stage.id))  # statuses are told apart here, as in `earlier_seconds`
    return [(estimate, stage) for estimate, stage in rows if estimate and stage.status is StageStatus.SUCCEEDED]
