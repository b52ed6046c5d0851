"""The Celery application: `celery -A worker.app worker`, or `python -m worker`.

Celery carries the doorbell and keeps the pool of processes; who owns a stage, and whether it lives, the database
decides. Each setting below is there so that Celery decides nothing more.
"""

from __future__ import annotations

import os
import select
import signal
from functools import cache
from typing import Any

import kombu.transport.redis  # noqa: F401 - what is loaded before the first fork is in memory once
from celery import Celery, bootsteps
from celery.signals import (
    setup_logging,
    worker_before_create_process,
    worker_process_init,
    worker_ready,
    worker_shutting_down,
)
from sqlalchemy.orm import configure_mappers

from allo_engine.source import code_version
from service.broker import queue_of
from service.brokers import for_celery
from service.db import Database
from service.footprint import settle
from service.logs import configure
from service.starting import settings_or_end
from service.storage import open_store
from worker import scheduler, serving
from worker.beside import Beside
from worker.engine import DEFAULT_COMMAND
from worker.heart import patience_of
from worker.offer import offer, worker_id
from worker.runner import Runner
from worker.starting import Warm, start_cold

settings = settings_or_end()
configure_mappers()  # here: once for all that is forked from here
code_version()  # as this worker first finds it: all that it starts, however late, hold their files against that

app = Celery("worker", broker=for_celery(settings.broker_url), include=["worker.tasks"])
app.conf.update(
    # A message is acknowledged as it is taken: a late acknowledgement makes the visibility timeout run a long task
    # twice. What is lost with a worker is rung for again.
    task_acks_late=False,
    # A worker takes a message only for a slot that is free, so that the order of the database is the order of work.
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    # One process a slot: a stage is a process of its own, and needs one parent that waits for it.
    worker_pool="prefork",
    worker_concurrency=offer(settings).slots,
    worker_proc_alive_timeout=60.0,
    # Progress and results are rows of the database.
    task_ignore_result=True,
    result_backend=None,
    worker_send_task_events=False,
    # Nobody revokes or terminates over the broker: that would leave the training process running.
    worker_enable_remote_control=False,
    # A broker that comes late, or goes and comes back, is waited for; running stages do not care.
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Pickle from a broker is code from a broker.
    accept_content=["json"],
    task_serializer="json",
    # What is meant for this worker is said to this worker: the dispatcher has chosen it, and devices of it.
    task_default_queue=queue_of(settings.queue, worker_id(settings)),
    worker_redirect_stdouts=False,
)

_HANGUP = signal.getsignal(signal.SIGHUP)
"""As it was found: nohup has it ignored."""

_DRAIN = os.eventfd(0, os.EFD_CLOEXEC)
"""Readable once this worker shuts down. Every process of it inherits it, and no lock is involved."""


_NUDGE = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
"""Readable once a stage of this worker has ended: the scheduler need not wait to look for what follows it."""


def nudge() -> None:
    """Have the scheduler look now."""
    os.eventfd_write(_NUDGE, 1)


@setup_logging.connect  # type: ignore[untyped-decorator]
def write_logs(**_: Any) -> None:
    """Ours, in this process and in those of its pool: Celery leaves the loggers alone."""
    configure(settings.log_format, settings.log_level)


@worker_ready.connect  # type: ignore[untyped-decorator]
def end_with_the_terminal(**_: Any) -> None:
    """A terminal that is closed ends this worker as SIGTERM does, and nohup keeps it. Where its output is no terminal,
    Celery would start it anew, and wait for its stages before."""
    ignored = _HANGUP is signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else lambda *_: os.kill(os.getpid(), signal.SIGTERM))


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def start_draining(**_: Any) -> None:
    """A warm shutdown waits for its tasks; this tells them to checkpoint, give their stage back and end."""
    os.eventfd_write(_DRAIN, 1)
    nudge()


def draining() -> bool:
    """Whether this worker is shutting down."""
    return bool(select.select([_DRAIN], [], [], 0)[0])


@cache
def runner() -> Runner:
    """The runner of this pool process, with connections that no other process has: made after the fork."""
    start = start_cold if settings.engine else warm().start
    database = Database(settings.database, patience=patience_of(settings))
    return Runner(settings, database, open_store(settings.store, settings.s3), draining, start)


@cache
def warm() -> Warm:
    """The process that this pool process forks its stages from."""
    return Warm(DEFAULT_COMMAND)


@worker_before_create_process.connect  # type: ignore[untyped-decorator]
def share_pages(**_: Any) -> None:
    """The pool's processes share what is loaded here for as long as nobody writes to it."""
    settle()


@worker_process_init.connect  # type: ignore[untyped-decorator]
def open_slot(**_: Any) -> None:
    """Have the engine loaded by the time a stage comes. The devices that a stage sees, its claim names. What a terminal
    that is closed means, the worker decides: its whole group hears of it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not settings.engine:
        warm().prepare()


class SchedulerStep(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Keeps the scheduler running beside the worker, and what has models answer while it rests. A new scheduler rings
    at once for whatever the last worker lost."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        name = worker_id(settings)
        told = (name, code_version(), str(_NUDGE), str(_DRAIN))
        self._beside = [Beside(scheduler, told, _NUDGE, _DRAIN)]
        if settings.serve_idle_seconds and not settings.engine:
            self._beside.append(Beside(serving, [name]))

    def start(self, parent: Any) -> None:
        self._tend()
        parent.timer.call_repeatedly(1.0, self._tend)

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the signature is Celery's
        for process in self._beside:
            process.end()

    terminate = stop

    def _tend(self) -> None:
        for process in self._beside:
            process.tend()


app.steps["worker"].add(SchedulerStep)
