"""Queries about what a restored database still has of the system that it was copied from."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.jobs.lifecycle import JOB_ENDED
from service.jobs.tables import Job, KeptCheckpoint, Lease, Marker, Stage, Worker


def forget_workers(session: Session) -> None:
    """And all that any process held for all; the store is to have a marker of its own."""
    session.execute(delete(Marker))
    session.execute(delete(Worker))
    session.execute(update(Lease).values(holder=""))


def leap(session: Session, epochs: int) -> None:
    """Every stage's epoch is so much higher."""
    session.execute(update(Stage).values(epoch=Stage.epoch + epochs).execution_options(synchronize_session=False))


def unended_jobs(session: Session) -> Sequence[Job]:
    return session.scalars(select(Job).where(Job.status.not_in(JOB_ENDED)).order_by(Job.id)).all()


def drop_kept(session: Session, lacking: set[str]) -> None:
    """Forgets the kept checkpoints that need one of these contents."""
    for row in session.scalars(select(KeptCheckpoint)):
        if any(sha256 in lacking for _, sha256, _ in row.files):
            session.delete(row)
    session.flush()
