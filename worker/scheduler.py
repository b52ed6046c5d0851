"""The dispatcher and the reaper as a process: looks, decides, acts, sleeps.

    python -m worker.scheduler NUDGE

NUDGE is an event descriptor: once it is written to, the next look comes at once. Every worker starts a scheduler; of
all that run, one acts (`worker.leader`). What it decides is in `worker.scheduling`.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from service.broker import Broker, BrokerDown, CeleryBroker
from service.db import Database, migrate
from service.jobs import attempts, dispatch
from service.settings import Settings
from service.storage import open_store
from service.storage.store import Store
from worker.leader import Leadership, leadership
from worker.scheduling import Action, Dispatch, Expire, Policy, RingAgain, Running, Scheduler, Snapshot, Waiting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hands:
    """What a scheduler acts through. `clock` is monotonic."""

    database: Database
    store: Store
    broker: Broker
    clock: Callable[[], float] = time.monotonic


def tick(scheduler: Scheduler, hands: Hands) -> None:
    """Look once, and do what follows."""
    for action in scheduler.decide(look(hands.database), hands.clock()):
        act(action, scheduler, hands)


def look(database: Database) -> Snapshot:
    """The stages that are not at rest. Running ones are read last: what was claimed meanwhile is merely seen twice."""
    ready = tuple(Waiting(stage.stage_id, stage.epoch) for stage in dispatch.ready_stages(database))
    dispatched = tuple(Waiting(stage.stage_id, stage.epoch) for stage in dispatch.dispatched_stages(database))
    leases = dispatch.running_stages(database)
    return Snapshot(ready, dispatched, tuple(Running(lease.stage_id, lease.epoch, lease.beat) for lease in leases))


def act(action: Action, scheduler: Scheduler, hands: Hands) -> None:
    """Do one thing; the database has the last word on each."""
    match action:
        case Dispatch(stage) | RingAgain(stage):
            if dispatch.mark_dispatched(hands.database, hands.store, stage.stage_id, stage.epoch):
                _ring(stage, scheduler, hands)
        case Expire(lease):
            if attempts.expire(hands.database, lease.stage_id, lease.epoch, lease.beat):
                log.warning("lease_expired stage_id=%s epoch=%s", lease.stage_id, lease.epoch)


def _ring(stage: Waiting, scheduler: Scheduler, hands: Hands) -> None:
    try:
        hands.broker.ring(stage.stage_id, stage.epoch)
    except BrokerDown as error:
        log.warning("ring_failed stage_id=%s epoch=%s error=%r", stage.stage_id, stage.epoch, error)
        return
    scheduler.rang(stage, hands.clock())
    log.info("stage_rung stage_id=%s epoch=%s", stage.stage_id, stage.epoch)


def policy_of(settings: Settings) -> Policy:
    """Our patience, as the settings have it. A gap of a few looks in a row is blindness, an ordinary one is not."""
    slots, blind = settings.total_slots or settings.slots, max(5.0, 4 * settings.dispatch_seconds)
    return Policy(slots, settings.redispatch_seconds, settings.lease_seconds, blind)


class Nudges:
    """Shortens the time between two looks, and ends it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        os.eventfd_write(self._descriptor, 1)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until nudged; whether to stop."""
        if select.select([self._descriptor], [], [], seconds)[0]:
            os.eventfd_read(self._descriptor)
        return self.stopped


def serve(settings: Settings, leader: Leadership, hands: Hands, nudges: Nudges) -> None:
    """Tick while this process leads, until it is stopped. A database that is away is waited for."""
    policy = policy_of(settings)
    scheduler = Scheduler(policy)
    while not nudges.wait(settings.dispatch_seconds):
        try:
            if leader.held():
                tick(scheduler, hands)
            else:
                scheduler = Scheduler(policy)  # what a former leader remembers is out of date
        except SQLAlchemyError as error:
            log.warning("database_away error=%r", type(error).__name__)


def main() -> None:
    """Run until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = Settings.from_environment()
    nudges = Nudges(int(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda *_: nudges.stop())
    migrate(settings.database)
    database = Database(settings.database)
    hands = Hands(database, open_store(settings.store), CeleryBroker(settings.broker_url, settings.queue))
    serve(settings, leadership(database.engine, settings.data_dir), hands, nudges)


if __name__ == "__main__":
    main()
