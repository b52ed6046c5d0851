"""The bases that this worker has in memory to answer, each in a process of its own; what they are read from."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from service.jobs.registry.served import Served
from service.jobs.running.placement import Offer
from service.settings import Settings
from service.storage.store import Store
from worker import turns
from worker.answering import Model, Process, Tell
from worker.devices import visible
from worker.starting import engine_environment

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "allo_engine.answering")

MOST_BASES = 3
"""At once: a base, and what training all of its weights left of it."""

GROWTH = {"cpu": 2.2, "cuda": 1.3}
"""Bytes of memory that a stored byte of weights takes: 16 bits become 32 on a processor; and what answering takes."""

VLLM_GROWTH = 2.5
"""On a device that holds several bases by vLLM: each one's keys and values may take as much again as its weights."""

Why = tuple[str, str]
"""A code and a sentence: why there is no answer."""

SWAPPED = ("busy", "Another model takes its place: ask again.")


class Shelf:
    """Models by their bases. While there is one, no stage runs here (`worker.turns`). `tell` passes on what they say;
    `command` begins the command line of each one's process; the folder of its base and what decodes end it."""

    def __init__(
        self, settings: Settings, store: Store, has: Offer, tell: Tell, command: Sequence[str] = COMMAND
    ) -> None:
        self._settings, self._store, self._has, self._tell, self._command = settings, store, has, tell, command
        self._folder = settings.data_dir.absolute() / "serving"
        self._models: dict[str, Model] = {}
        self._lock: int | None = None
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed

    @property
    def bases(self) -> list[str]:
        return list(self._models)

    @property
    def questions(self) -> int:
        """How many are being answered, or about to be."""
        return sum(model.questions for model in self._models.values())

    def room(self) -> int:
        """Bytes of stored weights that would fit if nothing else were loaded here."""
        if self._has.devices:
            return self._of_device(GROWTH["cuda"])
        held = sum(map(_resident, psutil.Process().children(recursive=True) if self._models else []))
        return self._free() + round(held / GROWTH["cpu"])

    def got(self, served: Served) -> Model | None:
        """The model's base, loaded or about to be; None where there is no room yet beside those that answer."""
        model = self._models.get(served.base)
        return model or (self._load(served) if self._has_room(served) else None)

    def ask(self, model: Model, name: str, served: Served, question: Mapping[str, Any]) -> None:
        """Have it answer. Raises StoreError and OSError."""
        folder = None
        if served.delta is not None:
            folder = self._folder / "deltas" / served.delta
            if not folder.exists():
                self._store.fetch(served.delta, folder / "delta.safetensors")
        model.ask(name, {**question, "delta": None if folder is None else str(folder)})

    def tidy(self) -> None:
        """Forget those that have ended, and end those that nobody has asked for long."""
        for base, model in list(self._models.items()):
            if not model.over and model.idle_seconds >= self._settings.serve_idle_seconds:
                log.info("model_idle base=%s", base)
                model.end(*SWAPPED)
            if model.over or model.ended:
                del self._models[base]
        if not self._models and self._lock is not None:
            os.close(self._lock)  # their processes hold it until they are gone
            self._lock = None

    def refuse_waiting(self, why: Why) -> None:
        """Nothing begins any more."""
        for model in self._models.values():
            model.refuse_waiting(*why)

    def clear(self, why: Why) -> None:
        """End them all."""
        for model in self._models.values():
            model.end(*why)
        self.tidy()

    def _has_room(self, served: Served) -> bool:
        """Whether one more can be loaded; the one that was asked longest ago makes room, once nobody waits for it."""
        fits = self._free() - sum(one.weight_bytes for one in self._loading()) >= served.weight_bytes
        if not self._models or (fits and len(self._models) < MOST_BASES):
            return True
        idle = [model for model in self._models.values() if not model.questions]
        if idle:
            max(idle, key=lambda model: model.idle_seconds).end(*SWAPPED)
            self.tidy()
        return False

    def _loading(self) -> list[Model]:
        """Those whose memory is not all taken yet; on a device, where nobody looks, all of them."""
        return [model for model in self._models.values() if self._has.devices or not model.ready]

    def _free(self) -> int:
        """Bytes of stored weights that fit; on a device, of several bases together."""
        if self._has.devices:
            return self._of_device(VLLM_GROWTH if self._by_vllm() else GROWTH["cuda"])
        return round(min(int(psutil.virtual_memory().available), self._has.host_bytes) / GROWTH["cpu"])

    def _of_device(self, growth: float) -> int:
        return round((self._has.devices[0].bytes or 2**62) / growth)

    def _by_vllm(self) -> bool:
        return self._settings.serve_backend != "transformers" and "vllm" in self._has.packages

    def _load(self, served: Served) -> Model | None:
        """None while the last stage's runner, or the last model, is on its way out."""
        self._lock = turns.answering(self._settings.data_dir) if self._lock is None else self._lock
        if self._lock is None:
            return None
        log.info("model_loading base=%s bytes=%s", served.base, served.weight_bytes)
        lock = os.dup(self._lock)

        def start(go_on: Callable[[], bool]) -> Process | None:
            try:
                return self._started(served, lock, go_on)
            finally:
                os.close(lock)  # the process has it now

        model = self._models[served.base] = Model(served.base, served.weight_bytes, start, self._tell)
        return model

    def _started(self, served: Served, lock: int, go_on: Callable[[], bool]) -> Process | None:
        base = self._folder / served.base
        shutil.rmtree(base, ignore_errors=True)
        for path, sha256, _ in served.files:
            if not go_on():
                return None
            self._store.fetch(sha256, base / path)
        process = self._process(base, lock)
        turns.note(lock, process.pid)
        return process

    def _process(self, base: Path, lock: int) -> Process:
        log_file = self._settings.data_dir / "logs" / "serving.log"
        log_file.parent.mkdir(exist_ok=True)
        device = [device.name for device in self._has.devices[:1]]
        with log_file.open("a") as errors:
            return subprocess.Popen(
                [*self._command, str(base), self._settings.serve_backend],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env={**engine_environment(), **visible(device or None)},
                start_new_session=True,
                pass_fds=[lock],
            )


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0
