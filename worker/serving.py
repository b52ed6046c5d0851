"""Models answer while this worker rests: a process beside the scheduler, `python -m worker.serving`.

It says to the broker that it would answer, takes questions from there, and has one base at a time in the memory of a
process of its own. Training comes first: it answers only where no stage is under way on this worker, and none waits
that the worker could run. Once one does, what is under way has a few seconds to end, and then the model's process is
gone; the stage's runner waits for that (`worker.turns`).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import psutil
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
from service.storage import open_store
from service.storage.store import Store
from worker import turns
from worker.answering import Model, Process
from worker.devices import visible
from worker.heart import patience_of
from worker.offer import offer, worker_id
from worker.starting import engine_environment

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "allo_engine.answering")

LOOK_SECONDS = 0.5
"""Between two looks whether a stage wants this worker."""

WAITING = 32
"""Questions that wait here until their base has been loaded."""

GROWTH = {"cpu": 2.2, "cuda": 1.3}
"""Bytes of memory that a stored byte of weights takes: 16 bits become 32 on a processor; and what answering takes."""

TRAINING = ("training_first", "A training stage has come, which goes first: ask again once it has ended.")
STOPPED = ("worker_stopped", "The worker is being stopped: ask again.")
CROWDED = ("busy", "Many questions wait for this worker: ask again in a while.")
SWAPPED = ("busy", "Another model is being loaded: ask again.")


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


class Serving:
    """Takes questions, and gives each to the model that it is for."""

    def __init__(self, means: Means) -> None:
        self._means, self._settings = means, means.settings
        self._folder = means.settings.data_dir.absolute() / "serving"
        self._waiting: deque[Asked] = deque()
        self._model: Model | None = None
        self._gives_way: float | None = None

    def look(self) -> None:
        """Once: whether there is rest, what is asked, what is to be done. Raises BrokerDown."""
        if self._model is not None and self._model.over:
            self._model = None
        if self._rests():
            self._gives_way = None
            self._means.desk.offer(self._seat())
            self._take()
            self._go_on()
        else:
            self._make_way()

    def close(self) -> None:
        """End it all."""
        with suppress(BrokerDown):
            self._means.desk.withdraw()
            self._refuse(STOPPED)
        self._let_go(STOPPED)

    def _rests(self) -> bool:
        try:
            return at_rest(self._means.database, worker_id(self._settings), self._means.has)
        except SQLAlchemyError as error:
            log.warning("rest_unknown error=%r", type(error).__name__)
            return False

    def _seat(self) -> Seat:
        model = self._model
        questions = len(self._waiting) + (model.questions if model else 0)
        return Seat(model.base if model else None, questions, self._room())

    def _room(self) -> int:
        """Of stored weights."""
        devices = self._means.has.devices[:1]
        if devices:
            return round((devices[0].bytes or 2**62) / GROWTH["cuda"])
        held = sum(map(_resident, psutil.Process().children(recursive=True) if self._model else []))
        return round((int(psutil.virtual_memory().available) + held) / GROWTH["cpu"])

    def _take(self) -> None:
        """Wait for questions, a moment long."""
        found = self._means.desk.taken(LOOK_SECONDS)
        while found is not None:
            asked = read(found)
            if asked is not None and self._means.desk.tell(asked.id, {"type": "taken"}):
                if len(self._waiting) < WAITING:
                    self._waiting.append(asked)
                else:
                    self._means.desk.tell(asked.id, _error(CROWDED))
            found = self._means.desk.taken(0.001)

    def _go_on(self) -> None:
        """In the order in which they came: a question for another base waits until those before it are answered."""
        while self._waiting:
            asked = self._waiting[0]
            if self._model is None and not self._load(asked.served):
                return
            assert self._model is not None
            if self._model.base != asked.served.base:
                if not self._model.questions:
                    self._let_go(SWAPPED)
                return
            self._waiting.popleft()
            self._ask(self._model, asked)
        if self._model and self._model.idle_seconds >= self._settings.serve_idle_seconds:
            log.info("model_idle base=%s", self._model.base)
            self._let_go(SWAPPED)

    def _let_go(self, why: tuple[str, str]) -> None:
        if self._model is not None:
            self._model.end(*why)
        self._model = None

    def _load(self, served: Served) -> bool:
        """Whether the base is being loaded; not while the last stage's runner, or the last model, is on its way out."""
        lock = turns.answering(self._settings.data_dir)
        if lock is None:
            return False
        log.info("model_loading base=%s bytes=%s", served.base, served.weight_bytes)

        def start(go_on: Callable[[], bool]) -> Process | None:
            try:
                return self._started(served, lock, go_on)
            finally:
                os.close(lock)  # the process has it now

        self._model = Model(served.base, start, self._means.desk.tell)
        return True

    def _started(self, served: Served, lock: int, go_on: Callable[[], bool]) -> Process | None:
        shutil.rmtree(self._folder, ignore_errors=True)
        base = self._folder / "base"
        for path, sha256, _ in served.files:
            if not go_on():
                return None
            self._means.store.fetch(sha256, base / path)
        log_file = self._settings.data_dir / "logs" / "serving.log"
        log_file.parent.mkdir(exist_ok=True)
        device = [device.name for device in self._means.has.devices[:1]]
        with log_file.open("w") as errors:
            process = subprocess.Popen(
                [*COMMAND, str(base)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env={**engine_environment(), **visible(device or None)},
                start_new_session=True,
                pass_fds=[lock],
            )
        turns.note(lock, process.pid)
        return process

    def _ask(self, model: Model, asked: Asked) -> None:
        folder = None
        if asked.served.delta is not None:
            folder = self._folder / "deltas" / asked.served.delta
            if not folder.exists():
                self._means.store.fetch(asked.served.delta, folder / "delta.safetensors")
        question = {**asdict(asked.question), "delta": None if folder is None else str(folder)}
        model.ask(asked.id, question)

    def _make_way(self) -> None:
        """Nobody is answered any more but those who are being answered, and those for a few seconds."""
        if self._gives_way is None:
            self._means.desk.withdraw()
            self._gives_way = time.monotonic() + self._settings.drain_seconds
        if self._model is not None:
            self._model.refuse_waiting(*TRAINING)
            if not self._model.questions or time.monotonic() >= self._gives_way:
                self._let_go(TRAINING)
        self._take()
        self._refuse(TRAINING)

    def _refuse(self, why: tuple[str, str]) -> None:
        while self._waiting:
            self._means.desk.tell(self._waiting.popleft().id, _error(why))


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


def _error(why: tuple[str, str]) -> dict[str, str]:
    return {"type": "error", "code": why[0], "message": why[1]}


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def main() -> None:
    settings = Settings.from_environment()
    configure(settings.log_format, settings.log_level)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    settings.open_data_dir()
    name = worker_id(settings)
    database = Database(settings.database, patience=patience_of(settings))
    desk = Desk(settings.broker_url, settings.queue, name)
    serving = Serving(Means(settings, database, open_store(settings.store), desk, offer(settings)))
    while not stopped:
        try:
            serving.look()
        except BrokerDown as error:
            log.warning("broker_away error=%r", error)
            time.sleep(LOOK_SECONDS)
    serving.close()


if __name__ == "__main__":
    main()
