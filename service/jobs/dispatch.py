"""What the dispatcher and the reaper read and write. One verb, one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from service.db import Database
from service.jobs import repository
from service.jobs.lifecycle import StageStatus
from service.jobs.progression import advance, reuse, stopping
from service.storage.store import Store


@dataclass(frozen=True)
class Ring:
    """A stage to ring for, and the epoch that a claim must name."""

    stage_id: str
    epoch: int


@dataclass(frozen=True)
class Lease:
    """A running stage. A `beat` that stands still, by the reaper's own clock, is a lease that was lost."""

    stage_id: str
    epoch: int
    beat: int


def ready_stages(database: Database) -> tuple[Ring, ...]:
    """Stages that could run now, oldest job first. Of several that would compute the same, the first alone; none
    while it is being computed: the others will find its result."""
    with database.snapshot() as session:
        stages = repository.ready_stages(session)
        first = {stage.digest: stage for stage in reversed(stages)}
        return tuple(Ring(stage.id, stage.epoch) for stage in stages if first[stage.digest] is stage)


def dispatched_stages(database: Database) -> tuple[Ring, ...]:
    """Stages that were rung for and that no worker has claimed yet: ring again for those that stay here too long."""
    with database.snapshot() as session:
        stages = repository.stages_by_status(session, StageStatus.DISPATCHED)
        return tuple(Ring(stage.id, stage.epoch) for stage in stages)


def running_stages(database: Database) -> tuple[Lease, ...]:
    """Stages that a worker has claimed."""
    with database.snapshot() as session:
        stages = repository.stages_by_status(session, StageStatus.RUNNING)
        return tuple(Lease(stage.id, stage.epoch, stage.beat) for stage in stages)


def mark_dispatched(database: Database, store: Store, stage_id: str, epoch: int) -> bool:
    """Notes that a worker is about to be rung for the stage, for the first time or again. False: do not ring; it was
    claimed, cancelled, or its result has meanwhile been computed by another job, and is taken over here."""
    with database.transaction() as session:
        job, now = repository.lock_job_of(session, stage_id), database.now()
        stage = repository.stage(session, stage_id)
        if job is None or stage is None or stopping(job):
            return False
        if stage.status is StageStatus.READY and stage.epoch == epoch and reuse(session, store, job, stage, now):
            advance(session, store, job, now)
            return False
        return repository.move_stage(session, stage_id, epoch, StageStatus.DISPATCHED, dispatched_at=now)
