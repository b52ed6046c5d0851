"""Signs of life of one attempt, from a thread of its own: a silent engine must not look like a dead worker.

The same thread writes the attempt's events, so that a database that is away holds up nothing but this thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Literal

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from service.db import Database, nobody_writes
from service.engines import Patience
from service.jobs.running import attempts
from service.settings import Settings
from worker.outcome import Interrupt
from worker.supervisor import boot_seconds

log = logging.getLogger(__name__)

_MAX_PENDING_EVENTS = 1000
_METRICS_SECONDS = 1.0
_SOON_SECONDS = 0.02


@dataclass(frozen=True)
class Event:
    """Something to tell the job's owner."""

    level: Literal["info", "warn"]
    message: str
    data: Mapping[str, Any]
    type: Literal["message", "metrics"] = "message"


@dataclass(frozen=True)
class Progress:
    """How far the stage is, as it was last told, and behind which step of its own it left a checkpoint."""

    step: int | None = None
    total: int | None = None
    metrics: Mapping[str, Any] | None = None
    saved: int | None = None


def patience_of(settings: Settings) -> Patience:
    """How long a worker's database may take: a beat must fail and be tried again within the self-fence."""
    fence = settings.self_fence_seconds
    return Patience(lock=min(10.0, max(2.0, fence / 4)), statement=min(20.0, max(5.0, fence / 2)))


class Heart:
    """Beats from `with` to its end; `interrupt` says why the attempt must end, once it must, `paused` that it is to be
    given back, and `over` that the job's time is.

    `every` and `patience` are seconds: between beats, and without a successful one until the database is
    `unreachable`.
    """

    def __init__(self, database: Database, claim: attempts.Claim, every: float, patience: float) -> None:
        self.interrupt: Interrupt | None = None
        self.paused = self.over = False
        self.renewed: Callable[[], None] = lambda: None
        self._database, self._claim, self._every, self._patience = database, claim, every, patience
        self._progress = Progress()
        self._events: deque[Event] = deque(maxlen=_MAX_PENDING_EVENTS)
        self._metrics: Event | None = None
        self._warned: set[str] = set()
        self._metrics_at = 0.0
        self._last_success = self._counted = boot_seconds()
        self._due, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=f"heart of {claim.stage_id}", daemon=True)

    @property
    def unreachable(self) -> bool:
        """Whether the lease may run out before a beat gets through: the stage should be given back while it is ours."""
        return boot_seconds() - self._last_success > self._patience

    def tell(self, event: Event) -> None:
        """Write an event with the next beat. While the database is away the newest thousand are kept."""
        self._events.append(event)

    def warn_once(self, message: str) -> bool:
        """Tell a warning, the first time that there is a reason for it; whether this was that time."""
        if message in self._warned:
            return False
        self._warned.add(message)
        self.tell(Event("warn", message, {}))
        return True

    def advance(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Note how far the stage is; its first progress is told at once. Metrics become an event at most once a second,
        the last ones always."""
        first = self._progress.step is None
        self._progress = replace(self._progress, step=step, total=total, metrics=metrics or self._progress.metrics)
        if first:
            self._due.set()
        if metrics:
            self._metrics = Event(
                "info", f"Step {step} of {total}.", {"step": step, "total": total, **metrics}, "metrics"
            )
            if time.monotonic() - self._metrics_at >= _METRICS_SECONDS:
                self._tell_metrics()

    def told(self) -> bool:
        """Have all written that there is to tell; False where the attempt must end, or the database is away, first."""
        self._tell_metrics()
        while self._events and not (self.interrupt or self.unreachable):
            self._due.set()
            time.sleep(_SOON_SECONDS)
        return not self._events

    def saved(self, step: int) -> None:
        """Note a checkpoint behind this step of the stage; told at once, for it decides whether an attempt counts."""
        self._progress = replace(self._progress, saved=step)
        self._due.set()

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._due.set()
        self._thread.join(self._patience)  # a database that hangs must not hang us too

    def _run(self) -> None:
        try:
            self._beats()
        except Exception:  # of whatever kind: without a heart the lease would be lost, and nobody would know why
            log.exception("heart_broke stage_id=%s epoch=%s", *self._name())
            self.interrupt = self.interrupt or Interrupt.BROKEN

    def _beats(self) -> None:
        while True:
            self._due.wait(self._every)
            self._due.clear()  # before what is due is read: whatever comes later makes it due again
            if self._ended:
                break
            self._beat()
        self._tell_metrics()
        self._beat()

    def _beat(self) -> None:
        try:
            self._send()
        except SQLAlchemyError as error:
            log.warning("heartbeat_failed stage_id=%s epoch=%s error=%r", *self._name(), type(error).__name__)
            if isinstance(error, DBAPIError) and nobody_writes(error):
                self._renew()  # the lease is still ours: whoever could take it would have to write

    def _send(self) -> None:
        at = boot_seconds()
        ran = at - self._counted
        answer = attempts.heartbeat(self._database, *self._name(), **asdict(self._progress), ran=ran)
        self._counted = at
        if not answer.alive:
            self.interrupt = self.interrupt or Interrupt.FENCED
            return
        self._renew()
        if answer.cancel:
            self.interrupt = self.interrupt or Interrupt.CANCELLED
        self.paused, self.over = self.paused or answer.pause, self.over or answer.over
        self._send_events()

    def _renew(self) -> None:
        self._last_success = boot_seconds()
        self.renewed()

    def _send_events(self) -> None:
        for event in list(self._events):
            attempts.record_message(
                self._database, *self._name(), event.level, event.message, event.data, type=event.type
            )
            self._events.popleft()

    def _tell_metrics(self) -> None:
        if self._metrics is not None:
            self._events.append(self._metrics)
            self._metrics, self._metrics_at = None, time.monotonic()

    def _name(self) -> tuple[str, int]:
        return self._claim.stage_id, self._claim.epoch
