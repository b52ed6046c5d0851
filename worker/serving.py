"""Models answer while this worker rests: a process beside the scheduler, `python -m worker.serving NAME`.

It says to the broker that it would answer, takes questions from there, and gives them to processes that hold a base
each (`worker.shelf`). Training comes first: it answers only where no stage is under way on this worker, and none waits
that the worker could run. Once one does, what is under way has a few seconds to end, and then the model's process is
gone; the stage's runner waits for that (`worker.turns`).
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from service.broker import BrokerDown
from service.db import Database
from service.exchange import Desk, Seat
from service.jobs.registry.folders import KNOWN
from service.jobs.registry.served import Served
from service.jobs.running.dispatch import at_rest
from service.jobs.running.placement import Offer
from service.jobs.trying import Question
from service.logs import configure
from service.settings import Settings
from service.starting import settings_or_end
from service.storage import open_store
from service.storage.store import Store, StoreError
from worker.answering import error_line
from worker.heart import patience_of
from worker.offer import offer
from worker.shelf import Shelf, Why

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks whether a stage wants this worker."""

WAITING = 32
"""Questions that wait here until their base has been loaded."""

TRAINING = ("training_first", "A training stage has come, which goes first: ask again once it has ended.")
STOPPED = ("worker_stopped", "The worker is being stopped: ask again.")
CROWDED = ("busy", "Many questions wait for this worker: ask again in a while.")
UNREADABLE = ("model_failed", "The model's files cannot be read: the worker's log says why.")


@dataclass(frozen=True)
class Asked:
    """What came through the broker."""

    id: str
    served: Served
    question: Question


_ASKED = TypeAdapter(Asked)
_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Means:
    """What serving works with."""

    settings: Settings
    database: Database
    store: Store
    desk: Desk
    has: Offer
    worker: str


class Serving:
    """Takes questions, and gives each to the model that it is for."""

    def __init__(self, means: Means) -> None:
        self._means, self._settings = means, means.settings
        self._shelf = Shelf(means.settings, means.store, means.has, means.desk.tell)
        self._waiting: deque[Asked] = deque()
        self._gives_way: float | None = None

    def look(self) -> None:
        """Once: whether there is rest, what is asked, what is to be done. Raises BrokerDown."""
        self._shelf.tidy()
        if self._rests():
            self._gives_way = None
            questions = len(self._waiting) + self._shelf.questions
            self._means.desk.offer(Seat(self._shelf.bases, questions, self._shelf.room()))
            self._take()
            self._go_on()
        else:
            self._make_way()

    def close(self) -> None:
        """End it all."""
        with suppress(BrokerDown):
            self._means.desk.withdraw()
            self._refuse(STOPPED)
        self._shelf.clear(STOPPED)

    def _rests(self) -> bool:
        try:
            return at_rest(self._means.database, self._means.worker, self._means.has)
        except SQLAlchemyError as error:
            log.warning("rest_unknown error=%r", type(error).__name__)
            return False

    def _take(self) -> None:
        """Wait for questions, a moment long."""
        found = self._means.desk.taken(LOOK_SECONDS)
        while found is not None:
            asked = read(found)
            if asked is not None and self._means.desk.tell(asked.id, {"type": "taken"}):
                if len(self._waiting) < WAITING:
                    self._waiting.append(asked)
                else:
                    self._tell(asked, CROWDED)
            found = self._means.desk.taken(0.001)

    def _go_on(self) -> None:
        """In the order in which they came: a question whose base has no room yet is overtaken by none."""
        while self._waiting:
            asked = self._waiting[0]
            model = self._shelf.got(asked.served)
            if model is None:
                return
            self._waiting.popleft()
            try:
                self._shelf.ask(model, asked.id, asked.served, asdict(asked.question))
            except (StoreError, OSError) as error:
                log.warning("question_failed id=%s error=%r", asked.id, error)
                self._tell(asked, UNREADABLE)

    def _make_way(self) -> None:
        """Nobody is answered any more but those who are being answered, and those for a few seconds."""
        if self._gives_way is None:
            self._means.desk.withdraw()
            self._gives_way = time.monotonic() + self._settings.drain_seconds
        self._shelf.refuse_waiting(TRAINING)
        if not self._shelf.questions or time.monotonic() >= self._gives_way:
            self._shelf.clear(TRAINING)
        self._take()
        self._refuse(TRAINING)

    def _refuse(self, why: Why) -> None:
        while self._waiting:
            self._tell(self._waiting.popleft(), why)

    def _tell(self, asked: Asked, why: Why) -> None:
        """That there is no answer."""
        self._means.desk.tell(asked.id, error_line(*why))


def read(found: Mapping[str, Any]) -> Asked | None:
    """None of what no web process of ours would ask: names never lead anywhere."""
    try:
        asked = _ASKED.validate_python(found)
    except ValidationError:
        log.warning("question_dropped")
        return None
    hashes = [sha256 for _, sha256, _ in asked.served.files] + [asked.served.delta or "0" * 64]
    named = all(path in KNOWN or _SAFE.fullmatch(path) for path, _, _ in asked.served.files)
    if named and all(map(_HASH.fullmatch, hashes)):
        return asked
    log.warning("question_dropped")
    return None


def main(arguments: Sequence[str]) -> None:
    settings = settings_or_end()
    configure(settings.log_format, settings.log_level)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    settings.open_data_dir()
    database, name = Database(settings.database, patience=patience_of(settings)), arguments[0]
    desk = Desk(settings.broker_url, settings.queue, name)
    serving = Serving(Means(settings, database, open_store(settings.store, settings.s3), desk, offer(settings), name))
    while not stopped:
        try:
            serving.look()
        except BrokerDown as error:
            log.warning("broker_away error=%r", error)
            time.sleep(LOOK_SECONDS)
    serving.close()


if __name__ == "__main__":
    main(sys.argv[1:])
