"""What the dispatcher and the reaper read and write. One verb, one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from allo_engine.needs import Needs
from service.db import Database
from service.jobs import repository
from service.jobs.lifecycle import StageStatus
from service.jobs.presence import Contents, asks_apart
from service.jobs.progression import add_event, advance, name_result, reuse, stopping
from service.jobs.repository import placing
from service.jobs.running import attempts
from service.jobs.running.flight import Host, Placed, Running, Waiting
from service.jobs.running.placement import Held, Offer, Seat, able, fits, seat
from service.jobs.running.workers import busy
from service.jobs.tables import Stage


def look(database: Database) -> tuple[tuple[Waiting, ...], tuple[Placed, ...], tuple[Running, ...], tuple[Host, ...]]:
    """What is ready, as much of each line as all workers together have slots; what was given to a worker; what one has
    claimed; and the workers. What was claimed meanwhile is merely seen twice: those under way are read last."""
    with database.snapshot() as session:
        there = _hosts(session)
        ready = _ready(session, max(1, sum(host.offer.slots for host in there)))
        return ready, *_under_way(session), there


def ready_stages(database: Database, most: int = 64) -> tuple[Waiting, ...]:
    """Stages that could run now, oldest job first: of each line of like ones the first `most`. Of several of an owner's
    that would compute the same, the first of the highest priority alone; none while it is being computed: the others
    will find its result."""
    with database.snapshot() as session:
        return _ready(session, most)


def dispatched_stages(database: Database) -> tuple[Placed, ...]:
    """Stages that no worker has claimed yet: ring again for those that stay here too long, or place them anew."""
    with database.snapshot() as session:
        return _under_way(session)[0]


def running_stages(database: Database) -> tuple[Running, ...]:
    """Stages that a worker has claimed."""
    with database.snapshot() as session:
        return _under_way(session)[1]


def at_rest(database: Database, worker_id: str, offer: Offer) -> bool:
    """Whether no stage is under way on a worker, and none waits that it could run."""
    if busy(database, worker_id):
        return False
    return not any(stage.code in offer.runs and seat(stage.needs, offer) for stage in ready_stages(database))


@asks_apart
def place(
    database: Database, store: Contents, stage_id: str, epoch: int, worker: str, devices: Sequence[str] = ()
) -> bool:
    """Gives the stage to a worker, which is about to be rung for it, for the first time or again. False: do not ring;
    it was claimed, cancelled, its result has meanwhile been computed by another job, and is taken over here, or the
    worker is gone or has no room: whoever else dispatches, no device is promised twice."""
    with database.transaction() as session:
        job, now = repository.lock_job_of(session, stage_id), database.now()
        stage = repository.stage(session, stage_id)
        if job is None or stage is None or stopping(job):
            return False
        if stage.status is StageStatus.READY and stage.epoch == epoch and reuse(session, store, job, stage, now):
            advance(session, store, job, now)
            return False
        return _give(session, stage, epoch, worker, devices, now)


def elsewhere(database: Database, stage_id: str, room: int) -> bool:
    """Whether another worker than the stage's own could begin it at once, on a disk with so many bytes of room."""
    with database.snapshot() as session:
        stage = repository.stage(session, stage_id)
        return stage is not None and bool(_others(session, stage, stage.worker, room))


def hand_over(database: Database, stage_id: str, epoch: int, room: int) -> bool:
    """Gives a running stage back, uncounted; to a worker that could begin it at once, on a disk with so many bytes of
    room, where there is one: the dispatcher rings for it there. False where it is no longer the caller's."""
    with database.transaction() as session:
        job, stage = repository.lock_job_of(session, stage_id), repository.stage(session, stage_id)
        if job is None or stage is None:
            return False
        here, now = stage.worker, database.now()
        if not attempts.release(database, stage_id, epoch):
            return False
        for worker, seat in _others(session, stage, here, room) if stage.status is StageStatus.READY else ():
            if _give(session, stage, epoch, worker, seat.devices, now):
                said = f"Stage {stage.name}: goes on on another worker, whose disk has room."
                add_event(session, job, now, "info", said, {"stage": stage.name, "worker": worker})
                break
        return True


def plan_anew(database: Database, stage_id: str, epoch: int) -> bool:
    """Plans a stage for the code that this process has of it, which workers run that are there; the code that it was
    planned for is gone. The job's owner is told."""
    with database.transaction() as session:
        job = repository.lock_job_of(session, stage_id)
        stage = repository.stage(session, stage_id)
        unclaimed = (StageStatus.READY, StageStatus.DISPATCHED)
        if job is None or stage is None or stage.epoch != epoch or stage.status not in unclaimed:
            return False
        planned = stage.code
        name_result(session, job, stage)
        assert stage.code is not None
        found = f"by version {stage.code[:8]} of its code"
        other = planned[:8] if planned else "another"
        message = f"Stage {stage.name}: will run {found}; it was planned for {other}, which no worker has."
        data = {"stage": stage.name, "planned": planned, "code": stage.code}
        add_event(session, job, database.now(), "warn", message, data)
        return True


def _hosts(session: Session) -> tuple[Host, ...]:
    return tuple(Host(row.id, row.beat, Offer.read(row.offer)) for row in repository.workers(session))


def _ready(session: Session, most: int) -> tuple[Waiting, ...]:
    rows = placing.ready_stages(session, most)
    first: dict[tuple[str, str | None], str] = {}
    for row in sorted(rows, key=lambda row: -row.priority):
        first.setdefault((row.owner, row.digest), row.id)
    return tuple(_waiting(row) for row in rows if first[row.owner, row.digest] == row.id)


def _under_way(session: Session) -> tuple[tuple[Placed, ...], tuple[Running, ...]]:
    rows = placing.under_way(session)
    placed = [row for row in rows if row.status is StageStatus.DISPATCHED]
    return (
        tuple(Placed(_waiting(row), row.worker, tuple(row.devices or ())) for row in placed),
        tuple(_running(row) for row in rows if row.status is StageStatus.RUNNING),
    )


def _waiting(row: Row[Any]) -> Waiting:
    return Waiting(row.id, row.epoch, Needs.read(row.needs), row.code, row.owner, row.priority)


def _running(row: Row[Any]) -> Running:
    held = (Needs.read(row.needs), row.worker, tuple(row.devices or ()))
    return Running(row.id, row.epoch, row.beat, *held, row.owner)


def _give(session: Session, stage: Stage, epoch: int, worker: str, devices: Sequence[str], now: int) -> bool:
    """Places the stage on a worker, unless that is gone or has no room."""
    offer = _offer(session, worker)
    if offer is None or not _has_room(session, offer, stage, worker, devices):
        return False
    seat = list(devices) if offer.devices else None
    target, values = StageStatus.DISPATCHED, {"worker": worker, "devices": seat, "dispatched_at": now}
    return repository.move_stage(session, stage.id, epoch, target, **values)


def _offer(session: Session, worker_id: str) -> Offer | None:
    worker = repository.lock_worker(session, worker_id)
    return None if worker is None else Offer.read(worker.offer)


def _others(session: Session, stage: Stage, here: str | None, room: int) -> list[tuple[str, Seat]]:
    """The workers but `here` that could begin the stage at once, the best first, and where it would sit."""
    needs = Needs.read(stage.needs)
    offers = {row.id: Offer.read(row.offer) for row in repository.workers(session)}
    could = able(needs, {name: offer for name, offer in offers.items() if stage.code in offer.runs})
    roomy = [name for name in could if name != here and offers[name].free_bytes >= room]
    seats = {name: seat(needs, offers[name], _held(session, stage, name)) for name in roomy}
    return sorted(((name, found) for name, found in seats.items() if found), key=lambda pair: (pair[1].left, pair[0]))


def _held(session: Session, stage: Stage, worker_id: str) -> list[Held]:
    """What others than this stage have of a worker."""
    others = [other for other in repository.stages_under_way(session, worker_id) if other.id != stage.id]
    return [Held(Needs.read(other.needs), tuple(other.devices or ())) for other in others]


def _has_room(session: Session, offer: Offer, stage: Stage, worker_id: str, devices: Sequence[str]) -> bool:
    held = _held(session, stage, worker_id)
    return stage.code in offer.runs and fits(Needs.read(stage.needs), offer, held, devices)
