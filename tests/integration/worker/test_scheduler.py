"""The scheduler's loop over a real database, and who of several may run it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from service.broker import BrokerDown
from service.jobs.data.erasing import held_contents, keeping_of
from service.jobs.data.marking import mark, witnesses
from service.jobs.running import attempts, workers
from service.storage.local import LocalStore
from tests.clock import Clock
from tests.integration.worker.house import House
from tests.waiting import PATIENCE, until
from worker.leader import Leadership
from worker.offer import offer
from worker.proof import Proof
from worker.scheduler import Hands, Nudges, Presence, policy_of, serve, tick
from worker.scheduler import look as snapshot
from worker.scheduling import Scheduler


class RecordingBroker:
    """A broker that notes its rings, and is down when told so. Fulfils `Broker`."""

    def __init__(self) -> None:
        self.rings: list[tuple[str, int]] = []
        self.forgotten: list[str] = []
        self.down = False
        self.hangs: Callable[[], None] | None = None

    def ring(self, worker: str, stage_id: str, epoch: int) -> None:
        if self.hangs is not None:
            self.hangs()
            raise BrokerDown("it hangs")
        self.ping()
        self.rings.append((stage_id, epoch))

    def forget(self, worker: str) -> None:
        self.ping()
        self.forgotten.append(worker)

    def ping(self) -> None:
        if self.down:
            raise BrokerDown("told so")


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    """Its scheduler has a clock of the test's."""
    return make_house(self_fence_seconds=2, lease_seconds=3)


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


def leader(house: House, holder: str, lease: float, clock: Callable[[], float] = time.monotonic) -> Leadership:
    return Leadership(house.database, holder, 0.1, lease, clock)


def test_of_two_schedulers_one_acts_until_it_ends(house, hands):
    house.submit()
    first, second = (leader(house, name, lease=PATIENCE) for name in ("first", "second"))
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


def test_a_leader_that_is_silent_for_a_lease_leads_no_more_and_finds_out(house):
    clock, standing = Clock(), Clock()
    first, second = leader(house, "first", 10, clock), leader(house, "second", 10, standing)
    assert first.held()
    assert not second.held()
    for seconds in (5, 4.9):
        standing.now += seconds
        assert not second.held()
    standing.now += 0.2
    assert second.held()
    clock.now += 60  # it was frozen
    assert not first.held()
    standing.now += 60  # nobody took over in this time
    assert second.held()


def test_a_leader_that_beats_leads_on_whatever_the_others_clocks_say(house):
    clock, standing = Clock(), Clock()
    first, second = leader(house, "first", 10, clock), leader(house, "second", 10, standing)
    for _ in range(10):
        clock.now += 1
        assert first.held()
        standing.now += 9
        assert not second.held()


def test_a_worker_that_starts_again_leads_on_at_once(house):
    assert leader(house, "first", 10).held()
    assert leader(house, "first", 10).held()


def test_whoever_stood_by_knows_who_was_silent_when_it_comes_to_lead(house, hands):
    job = house.submit()
    look(hands, Scheduler(policy_of(house.settings)))
    assert attempts.claim(house.database, house.stage(job).id, 0, house.worker)
    standby = Scheduler(policy_of(house.settings))
    for _ in range(40):
        presence(house).beat()
        hands.clock.now += 0.1
        standby.watch(snapshot(house.database), hands.clock())
    assert house.stage(job).status == "running"
    look(hands, standby)
    assert (house.stage(job).status, house.stage(job).epoch) == ("ready", 1)


def test_a_broker_that_hangs_on_every_ring_is_no_blindness(house, hands):
    """Each ring takes longer than a reaper may be away, and yet a silent stage is taken."""
    job = house.submit()
    scheduler = Scheduler(policy_of(house.settings))
    look(hands, scheduler)
    assert attempts.claim(house.database, house.stage(job).id, 0, house.worker)
    house.submit(seed=1)
    workers.beat(house.database, "other", "host", offer(house.settings))
    hands.broker.hangs = lambda: setattr(hands.clock, "now", hands.clock.now + 6)
    for _ in range(3):
        look(hands, scheduler, 0.1)
        workers.beat(house.database, "other", "host", offer(house.settings))
    assert house.stage(job).attempt == 1
    assert house.stage(job).status != "running"


def test_a_nudge_brings_the_next_look_at_once(house, hands):
    nudge, patient = os.eventfd(0), house.settings.model_copy(update={"dispatch_seconds": 3600})
    first = leader(house, "first", lease=PATIENCE)
    nudges = Nudges(nudge)
    thread = threading.Thread(target=serve, args=(patient, first, hands, nudges, presence(house)))
    thread.start()
    house.submit()
    os.eventfd_write(nudge, 1)
    until(lambda: hands.broker.rings)
    nudges.stop()
    thread.join()
    first.close()


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


def test_a_worker_with_another_store_is_given_nothing_until_it_has_the_services(house, tmp_path, caplog):
    other = LocalStore(tmp_path / "other")
    here = Presence(house.database, house.worker, offer(house.settings), every=0, reads=Proof(house.database, other))
    for _ in range(3):
        here.beat()
        assert workers.read_workers(house.database) == []
    assert sum("other_store" in record.getMessage() for record in caplog.records) == 1
    for sha256 in witnesses(house.database):
        other.put_stream(house.store.open(sha256))
    here.beat()
    assert workers.read_workers(house.database)


def test_a_worker_with_the_store_of_a_service_that_has_the_same_contents_is_given_nothing(house, make_house, caplog):
    theirs = make_house("theirs")
    assert all(map(theirs.store.exists, witnesses(house.database)))
    mark(house.database, house.store)
    mark(theirs.database, theirs.store)
    assert not Proof(house.database, theirs.store)()
    assert "other_store" in caplog.text
    assert Proof(house.database, house.store)()


def test_a_marker_that_is_lost_is_put_back_into_the_services_store_and_into_no_other(house, tmp_path, caplog):
    mark(house.database, house.store)
    (marker,) = witnesses(house.database)
    house.store.delete(marker)
    mark(house.database, LocalStore(tmp_path / "other"))
    assert "other_store" in caplog.text
    assert not Proof(house.database, LocalStore(tmp_path / "other"))()
    mark(house.database, house.store)
    assert Proof(house.database, house.store)()
    assert marker in held_contents(house.database, house.store, keeping_of(house.settings))


def test_a_worker_whose_engine_was_replaced_beside_it_takes_leave_and_does_not_come_back(house):
    other = threading.Event()
    here = Presence(house.database, house.worker, offer(house.settings), every=0, replaced=other.is_set)
    here.beat()
    assert workers.read_workers(house.database)
    other.set()
    for _ in range(3):
        here.beat()
        assert workers.read_workers(house.database) == []
