"""What an owner takes of the service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.db import Database
from service.jobs import repository
from service.jobs.repository import holdings, totals
from service.jobs.repository.totals import StageTime

DAYS = 30
"""Of so many days back the time of workers is counted."""


@dataclass(frozen=True)
class Usage:
    """Bytes in all and by what they are of; jobs by their status; and what the stages of the last `DAYS` days took."""

    bytes: int
    shares: Mapping[str, int]
    jobs: Mapping[str, int]
    stages: Sequence[StageTime]

    @property
    def worker_seconds(self) -> int:
        return sum(stage.seconds for stage in self.stages)

    @property
    def device_seconds(self) -> int:
        return sum(stage.device_seconds for stage in self.stages)


def count_active(database: Database, owner: str) -> int:
    """The owner's unfinished jobs."""
    with database.snapshot() as session:
        return repository.count_active_jobs(session, owner)


def read_usage(database: Database, owner: str) -> Usage:
    """The owner's, as of now: every stage and file of theirs is gone through."""
    now = database.now()
    with database.snapshot() as session:
        return Usage(
            bytes=holdings.bytes_of(session, owner, now),
            shares=holdings.shares_of(session, owner, now),
            jobs=totals.jobs_of(session, owner),
            stages=totals.time_of(session, owner, now - DAYS * 86_400),
        )
