"""The workers that there are: each registers what it has, beats, and goes. One verb, one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.db import Database
from service.jobs import repository
from service.jobs.running.placement import Offer
from service.jobs.running.vigil import Vigil
from service.jobs.tables import Stage, Worker


@dataclass(frozen=True)
class WorkerView:
    """A worker and the stages that are under way on it."""

    worker: Worker
    offer: Offer
    stages: tuple[Stage, ...]


def beat(database: Database, worker_id: str, host: str, offer: Offer) -> None:
    """Registers the worker with what it has, or gives its next sign of life."""
    with database.transaction() as session:
        now = database.now()
        worker = repository.lock_worker(session, worker_id)
        if worker is None:
            worker = Worker(id=worker_id, beat=0, started_at=now)
            session.add(worker)
        worker.host, worker.offer, worker.beat_at, worker.beat = host, offer.write(), now, worker.beat + 1


def leave(database: Database, worker_id: str) -> None:
    """The worker ends: nothing is given to it any more."""
    with database.transaction() as session:
        repository.delete_worker(session, worker_id)


def forget(database: Database, worker_id: str, beat: int) -> bool:
    """Strikes off a worker that gave no sign of life: one whose beat is still `beat`."""
    with database.transaction() as session:
        worker = repository.lock_worker(session, worker_id)
        if worker is None or worker.beat != beat:
            return False
        repository.delete_worker(session, worker_id)
        return True


def busy(database: Database, worker_id: str) -> bool:
    """Whether the worker was given a stage that has not ended."""
    with database.snapshot() as session:
        return bool(repository.stages_under_way(session, worker_id))


def read_workers(database: Database) -> list[WorkerView]:
    """Every registered worker, in the order of names."""
    with database.snapshot() as session:
        stages = repository.stages_under_way(session)
        return [
            WorkerView(row, Offer.read(row.offer), tuple(stage for stage in stages if stage.worker == row.id))
            for row in repository.workers(session)
        ]


class Watch:
    """Which of the registered workers live, judged by this process's own clock: a beat that stands still for `lease`
    seconds is a worker that has died. `clock` is monotonic."""

    def __init__(self, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease, self._clock, self._vigil = lease, clock, Vigil()
        self.seen: Mapping[str, Offer] = {}
        """What those offered that lived when somebody looked last."""

    def living(self, database: Database) -> Mapping[str, Offer]:
        """What the workers offer that live, as far as this process has watched them; by their names, in that order."""
        with database.snapshot() as session:
            rows = repository.workers(session)
        now = self._clock()
        self._vigil.see([_sign(row) for row in rows], now)
        lives = [row for row in rows if self._vigil.still(_sign(row), now) < self._lease]
        self.seen = {row.id: Offer.read(row.offer) for row in lives}
        return self.seen

    def views(self, database: Database) -> list[WorkerView]:
        """The same workers, with what is under way on them."""
        living = self.living(database)
        return [view for view in read_workers(database) if view.worker.id in living]


def _sign(worker: Worker) -> tuple[str, int]:
    return worker.id, worker.beat
