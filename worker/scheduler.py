"""The dispatcher and the reaper as a process: looks, decides, acts, sleeps. It also says that its worker lives.

    python -m worker.scheduler NAME CODE NUDGE DRAIN

NAME is the worker's. CODE is the version of the engine's files that it knows of: where they are others, it takes no
stages. The others are event descriptors: once NUDGE is written to, the next look comes at once; once DRAIN is, the
worker takes no more stages. Every worker starts a scheduler; of all that run, one acts (`worker.leader`). What it
decides is in `worker.scheduling`.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from allo_engine import source
from allo_engine.pipeline import stage_codes
from service.broker import Broker, BrokerDown, CeleryBroker
from service.db import Database
from service.footprint import settle
from service.jobs.data import retention
from service.jobs.data.erasing import Eraser, keeping_of
from service.jobs.data.scrubbing import Scrubber
from service.jobs.presence import Contents
from service.jobs.running import attempts, dispatch, workers
from service.jobs.running.placement import Offer
from service.logs import configure
from service.migrating import NoDatabase, migrate
from service.rotation import Logs
from service.settings import Settings
from service.starting import settings_or_end
from service.storage import open_store
from service.storage.store import StoreAway
from worker import turns
from worker.calibrating import Calibrating
from worker.chores import Chores
from worker.claims import bury
from worker.heart import patience_of
from worker.leader import Leadership
from worker.offer import offer
from worker.prompt import Prompt
from worker.proof import Proof
from worker.room import free_bytes
from worker.scheduling import Action, Expire, Forget, Give, PlanAnew, Policy, Scheduler, Snapshot

log = logging.getLogger(__name__)

_LOGS_SECONDS, _LOGS = 60.0, 32
"""Between two looks at the logs, and how many of the largest size they may be together."""

_STANDBY_LOOKS = 4
"""Whoever leads looks so many times as often as whoever stands by."""


@dataclass(frozen=True)
class Hands:
    """What a scheduler acts through. `store` says which results are there, and keeps nobody waiting; `clock` is
    monotonic."""

    database: Database
    store: Contents
    broker: Broker
    clock: Callable[[], float] = time.monotonic


def tick(scheduler: Scheduler, hands: Hands) -> None:
    """Look once, and do what follows."""
    for action in scheduler.decide(look(hands.database), hands.clock()):
        act(action, scheduler, hands)
    scheduler.acted(hands.clock())


def look(database: Database) -> Snapshot:
    """The stages that are not at rest, and the workers."""
    return Snapshot(*dispatch.look(database))


def act(action: Action, scheduler: Scheduler, hands: Hands) -> None:
    """Do one thing; the database has the last word on each."""
    match action:
        case Give(stage, worker, devices):
            try:
                placed = dispatch.place(hands.database, hands.store, stage.stage_id, stage.epoch, worker, devices)
            except StoreAway:  # it holds what the stage may take over: the stage stays ready
                placed = False
            if placed:
                _ring(action, scheduler, hands)
        case PlanAnew(stage):
            if dispatch.plan_anew(hands.database, stage.stage_id, stage.epoch):
                log.warning("stage_planned_anew stage_id=%s planned=%s", stage.stage_id, stage.code)
        case Expire(lease):
            if attempts.expire(hands.database, lease.stage_id, lease.epoch, lease.beat):
                log.warning("lease_expired stage_id=%s epoch=%s", lease.stage_id, lease.epoch)
        case Forget(host):
            if workers.forget(hands.database, host.id, host.beat):
                log.warning("worker_forgotten worker=%s", host.id)
                with suppress(BrokerDown):  # what is left in its queue decides nothing
                    hands.broker.forget(host.id)


def _ring(given: Give, scheduler: Scheduler, hands: Hands) -> None:
    stage = given.stage
    try:
        hands.broker.ring(given.worker, stage.stage_id, stage.epoch)
    except BrokerDown as error:
        log.warning("ring_failed stage_id=%s epoch=%s error=%r", stage.stage_id, stage.epoch, error)
        return
    scheduler.rang(given, hands.clock())
    log.info("stage_rung stage_id=%s epoch=%s worker=%s", stage.stage_id, stage.epoch, given.worker)


def policy_of(settings: Settings) -> Policy:
    """Our patience, as the settings have it. A gap of a few looks in a row is blindness, an ordinary one is not."""
    blind = max(5.0, 2 * _STANDBY_LOOKS * settings.dispatch_seconds)
    return Policy(stage_codes(), settings.redispatch_seconds, settings.lease_seconds, blind)


def logs_of(settings: Settings) -> Logs:
    """The logs of this worker's folder."""
    folder, most = settings.data_dir, settings.log_bytes
    return Logs(folder / "logs", folder / "runs", most, _LOGS * most, settings.log_days * 86_400)


@dataclass
class Presence:
    """What tells the others that this worker is there, and what it has. `every`: seconds between two signs of life;
    `draining` says that it takes no more stages, `measured` how fast it is, once that is known, `replaced` that the
    engine's files are no longer those that it knows: it is to be started again; `room` how many bytes its disk has
    left, and `reads` that its store is the service's: with another one it takes no stages."""

    database: Database
    worker: str
    offer: Offer
    every: float
    draining: Callable[[], bool] = lambda: False
    measured: Callable[[], Mapping[str, float] | None] = lambda: None
    replaced: Callable[[], bool] = source.replaced
    room: Callable[[], int] = lambda: 0
    reads: Callable[[], bool] = lambda: True
    _due: float = field(default=0.0, init=False)

    def beat(self) -> None:
        """Give a sign of life, where one is due; none any more, once the worker drains or has other code beside it."""
        now, rates = time.monotonic(), self.measured()
        replaced = now >= self._due and self.replaced()
        if replaced:
            log.warning("code_replaced worker=%s", self.worker)
        if (self.draining() or replaced) and self._due < math.inf:
            workers.leave(self.database, self.worker)
            self._due = math.inf
        elif now >= self._due:
            if self.reads():
                offer = replace(self.offer, rates=rates, free_bytes=self.room())
                workers.beat(self.database, self.worker, socket.gethostname(), offer)
            else:
                self.leave()
            self._due = now + self.every

    def leave(self) -> None:
        """Be there no more, as far as the database can still be told."""
        with suppress(SQLAlchemyError):
            workers.leave(self.database, self.worker)


def readable(descriptor: int) -> bool:
    """Whether an event descriptor has been written to."""
    return bool(select.select([descriptor], [], [], 0)[0])


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


def serve(
    settings: Settings,
    leader: Leadership,
    hands: Hands,
    nudges: Nudges,
    here: Presence,
    tell: Callable[[bool], None] = lambda _: None,
) -> None:
    """Be present, and tick while this process leads, until it is stopped; `tell` hears whether it does. Whoever stands
    by watches, so that it can judge who lives as soon as it leads. A database that is away is waited for."""
    scheduler, pace = Scheduler(policy_of(settings)), settings.dispatch_seconds
    while not nudges.wait(pace):
        try:
            here.beat()
            bury(settings.data_dir, partial(_bereave, hands.database))
            leads = leader.held()
            tell(leads)
            if leads:
                tick(scheduler, hands)
            else:
                scheduler.watch(look(hands.database), hands.clock())
            pace = settings.dispatch_seconds * (1 if leads else _STANDBY_LOOKS)
        except SQLAlchemyError as error:
            log.warning("database_away error=%r", type(error).__name__)


def _bereave(database: Database, stage_id: str, epoch: int) -> None:
    if attempts.bereave(database, stage_id, epoch):
        log.warning("runner_died stage_id=%s epoch=%s", stage_id, epoch)


def main(arguments: Sequence[str]) -> None:
    """Run until SIGTERM."""
    settings = settings_or_end()
    configure(settings.log_format, settings.log_level)
    name, code, nudges = arguments[0], arguments[1], Nudges(int(arguments[2]))
    signal.signal(signal.SIGTERM, lambda *_: nudges.stop())
    settings.open_data_dir()
    try:
        migrate(settings.database)
    except NoDatabase as error:
        log.critical("not_started error=%s", error)
        sys.exit(1)
    database = Database(settings.database, patience=patience_of(settings))
    store = open_store(settings.store, settings.s3)
    contents = Prompt(store)
    hands = Hands(database, contents, CeleryBroker(settings.broker_url, settings.queue))
    draining, replaced = partial(readable, int(arguments[3])), partial(source.replaced, code)
    has = offer(settings)
    calibrating = Calibrating(settings.data_dir, has, 0 if settings.engine else settings.calibrate_seconds)
    measured = partial(calibrating.tend, lambda: workers.busy(database, name) or turns.answers(settings.data_dir))
    room = partial(free_bytes, (settings.data_dir, store.scratch))
    reads = Proof(database, contents)
    here = Presence(database, name, has, settings.heartbeat_seconds, draining, measured, replaced, room, reads)
    here.beat()
    chores = Chores(settings.sweep_seconds)
    chores.add("erasing", Eraser(database, store, keeping_of(settings)).look)
    if policy := retention.policy_of(settings):
        chores.add("retention", retention.Retention(database, policy, settings.keep_sources_seconds).look)
    if settings.scrub_days:
        scrubber = Scrubber(database, store, settings.scrub_days * 86_400, settings.scrub_bytes_per_second)
        chores.add("scrubbing", scrubber.look)
    logs = Chores(_LOGS_SECONDS)
    logs.add("logs", logs_of(settings).look)
    logs.tell(leads=True)  # each worker's own, whoever leads
    settle()
    leader = Leadership(database, name, settings.heartbeat_seconds, settings.lease_seconds / 2)
    serve(settings, leader, hands, nudges, here, chores.tell)
    here.leave()
    leader.close()
    calibrating.close()


if __name__ == "__main__":
    main(sys.argv[1:])
