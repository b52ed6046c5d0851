"""Queries of those who look for a job among many."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, String, cast, or_, select
from sqlalchemy.orm import Session, defer, load_only

from service.jobs.lifecycle import JobStatus
from service.jobs.repository import Page, paged
from service.jobs.tables import Job, Stage

_METHOD = Job.method["type"].as_string()

_OF_A_STAGE = (Stage.job_id, Stage.name, Stage.status, Stage.step, Stage.total, Stage.resumed_step, Stage.claimed_at)


@dataclass(frozen=True)
class Wanted:
    """Which jobs; whatever is None is anything. `text` is a part of a name: the job's, its suffix, its model's, its
    file's, or of its metadata."""

    owner: str | None = None
    status: JobStatus | None = None
    method: str | None = None
    model: str | None = None
    text: str | None = None


def found(session: Session, wanted: Wanted, page: Page) -> tuple[list[Job], bool]:
    """In the page's order, as far as a line tells of a job: without what is large."""
    query = select(Job).options(defer(Job.method), defer(Job.sources), defer(Job.estimate))
    for condition in _conditions(wanted):
        query = query.where(condition)
    return paged(session, query, Job.id, "ftjob", page)


def methods(session: Session, job_ids: Sequence[str]) -> Mapping[str, str]:
    """Each job's method, by its id."""
    rows = session.execute(select(Job.id, _METHOD).where(Job.id.in_(job_ids)))
    return {row.id: method for row in rows if (method := row[1])}


def stages(session: Session, job_ids: Sequence[str]) -> Sequence[Stage]:
    """The stages of these jobs, each job's in running order, as far as a line tells of them."""
    query = select(Stage).where(Stage.job_id.in_(job_ids)).order_by(Stage.job_id, Stage.position)
    return session.scalars(query.options(load_only(*_OF_A_STAGE))).all()


def owners(session: Session) -> Sequence[str]:
    return session.scalars(select(Job.owner).distinct().order_by(Job.owner)).all()


def models(session: Session, owner: str | None) -> Sequence[str]:
    query = select(Job.model).distinct().order_by(Job.model)
    return session.scalars(query if owner is None else query.where(Job.owner == owner)).all()


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    asked: dict[Any, object] = {Job.owner: wanted.owner, Job.status: wanted.status, Job.model: wanted.model}
    asked[_METHOD] = wanted.method
    found = [column == value for column, value in asked.items() if value is not None]
    return [*found, _named(wanted.text)] if wanted.text else found


def _named(text: str) -> ColumnElement[bool]:
    names: list[Any] = [Job.id, Job.suffix, Job.model, Job.fine_tuned_model, Job.training_file]
    stored = json.dumps(text)[1:-1]  # as JSON holds it, letters beyond ASCII escaped
    metadata = cast(Job.user_metadata, String).icontains(stored, autoescape=True)
    return or_(*(name.icontains(text, autoescape=True) for name in names), metadata)
