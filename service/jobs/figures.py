"""How much there is and how long it took, over all owners: for the operator's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.db import Database
from service.jobs.repository import kept, totals


@dataclass(frozen=True)
class Work:
    """What went into the stages of one name: seconds of those that succeeded, how many did, and attempts of all."""

    seconds: int
    succeeded: int
    attempts: int


@dataclass(frozen=True)
class Figures:
    """Counts at one moment. Stages by (name, status); a queue's depth in stages and its age in seconds;
    seconds since a running stage's checkpoint went to the store, of the stage for which that is longest."""

    jobs: Mapping[str, int]
    stages: Mapping[tuple[str, str], int]
    queue_depth: int
    queue_age: int
    kept_age: int
    work: Mapping[str, Work]
    file_bytes: int
    artifact_bytes: int


def read(database: Database) -> Figures:
    """What there is now."""
    with database.snapshot() as session:
        depth, oldest = totals.queue(session)
        return Figures(
            jobs=totals.jobs(session),
            stages=totals.stages(session),
            queue_depth=depth,
            queue_age=0 if oldest is None else max(0, database.now() - oldest),
            kept_age=0 if (since := kept.oldest(session)) is None else max(0, database.now() - since),
            work={name: Work(*row) for name, row in totals.work(session).items()},
            file_bytes=totals.file_bytes(session),
            artifact_bytes=totals.artifact_bytes(session),
        )
