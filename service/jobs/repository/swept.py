"""Queries about sweeps: jobs that were submitted together."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from service.jobs.ids import is_id
from service.jobs.repository import Page, unknown_place
from service.jobs.tables import Job


def jobs_of(session: Session, owner: str, sweep_ids: Sequence[str]) -> Sequence[Job]:
    """Their jobs, as far as these are there, in the order of the points; without what only runs and shows a job."""
    query = select(Job).where(Job.owner == owner, Job.sweep_id.in_(sweep_ids)).order_by(Job.id)
    return session.scalars(query.options(defer(Job.sources), defer(Job.method), defer(Job.estimate))).all()


def lock_jobs(session: Session, owner: str, sweep_id: str) -> Sequence[Job]:
    """The jobs' present rows; other verbs on them wait until this transaction ends."""
    query = select(Job).where(Job.owner == owner, Job.sweep_id == sweep_id).order_by(Job.id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).all()


def sweeps(session: Session, owner: str, page: Page) -> tuple[list[str], bool]:
    """The ids of a page of sweeps, and whether there are more. Raises NotFound for an `after` that is no sweep's."""
    column, down = Job.sweep_id, page.order == "desc"
    query = select(column).where(Job.owner == owner, column.is_not(None)).distinct()
    if page.after is not None:
        if not is_id("ftsweep", page.after):
            raise unknown_place(page.after)
        query = query.where(column < page.after if down else column > page.after)
    ordered = query.order_by(column.desc() if down else column).limit(page.limit + 1)
    found = [sweep_id for sweep_id in session.scalars(ordered) if sweep_id is not None]
    return found[: page.limit], len(found) > page.limit
