"""A job's events as they come, for those who follow it."""

from __future__ import annotations

from collections.abc import Sequence

from service.db import Database
from service.jobs import repository
from service.jobs.errors import NotFound
from service.jobs.lifecycle import JOB_ENDED
from service.jobs.repository import told
from service.jobs.tables import Event


def read_events_behind(database: Database, job_id: str, seq: int, most: int) -> list[Event]:
    """The first events of a job behind number `seq`, in their order. Whose job it is was asked before."""
    with database.snapshot() as session:
        return repository.events_behind(session, job_id, seq, most)


def read_counts(database: Database, job_ids: Sequence[str]) -> dict[str, tuple[int, bool]]:
    """How many events each job has, and whether it has ended."""
    with database.snapshot() as session:
        return {name: (count, status in JOB_ENDED) for name, count, status in repository.counts(session, job_ids)}


def read_place(database: Database, owner: str, job_id: str, event_id: str | None) -> tuple[int, bool]:
    """The number of an event, 0 for none, and whether the job has ended with it. Raises NotFound for an absent job, and
    for an event that is none of its."""
    with database.snapshot() as session:
        job = repository.job(session, owner, job_id)
        if job is None:
            raise NotFound(f"No fine-tuning job {job_id!r}.")
        seq = 0 if event_id is None else repository.event_seq(session, job_id, event_id)
        if seq is None:
            raise NotFound(f"The job has no event {event_id!r}: leave Last-Event-ID out.", "Last-Event-ID")
        return seq, job.status in JOB_ENDED and seq >= job.event_count


def read_messages(database: Database, owner: str, job_id: str, before: int | None, most: int) -> list[Event]:
    """The newest events that are no metrics, of all or of those before number `before`, newest first. Raises
    NotFound."""
    with database.snapshot() as session:
        if repository.job(session, owner, job_id) is None:
            raise NotFound(f"No fine-tuning job {job_id!r}.")
        return told.messages(session, job_id, before, most)


def read_turns(database: Database, job_id: str, most: int) -> list[Event]:
    """The newest messages that tell of the stages' attempts, in their order. Whose job it is was asked before."""
    with database.snapshot() as session:
        return told.turns(session, job_id, most)
