"""A process that holds one base in memory, and the questions that it was given (see the engine's `answering`)."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from service.broker import BrokerDown

log = logging.getLogger(__name__)

Process = subprocess.Popen[str]
Tell = Callable[[str, Mapping[str, Any]], bool]
"""Passes a line on to whoever asked; False where nobody waits for it any more. May raise BrokerDown."""

CRASHED = ("model_failed", "The model's process ended before its answer did: ask again. The worker's log says why.")


class Model:
    """One base, from its start to its end. `start` makes the process; it takes its time, and returns None where it is
    asked meanwhile not to go on."""

    def __init__(
        self, base: str, weight_bytes: int, start: Callable[[Callable[[], bool]], Process | None], tell: Tell
    ) -> None:
        self.base, self.weight_bytes = base, weight_bytes
        self._start, self._tell = start, tell
        self._lock = threading.RLock()
        self._process: Process | None = None
        self._unsent: list[Mapping[str, Any]] = []
        self._open: dict[str, bool] = {}
        self._last_words: tuple[str, str] | None = None
        self._used = time.monotonic()
        self.ready = self.over = False
        threading.Thread(target=self._run, name="model", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether it is to be gone, and nobody may ask it any more."""
        return self._last_words is not None

    @property
    def questions(self) -> int:
        """How many it answers, or is about to."""
        return len(self._open)

    @property
    def idle_seconds(self) -> float:
        """For how long nobody has asked it anything."""
        return 0.0 if self._open else time.monotonic() - self._used

    def ask(self, name: str, question: Mapping[str, Any]) -> None:
        """Have it answer."""
        with self._lock:
            self._open[name] = False
            self._send({**question, "id": name})
        if self.over:
            self._close_all()

    def refuse_waiting(self, code: str, message: str) -> None:
        """Tell those whose answers have not begun that there will be none."""
        with self._lock:
            waiting = [name for name, began in self._open.items() if not began]
        for name in waiting:
            self._send({"forget": name})
            self._close(name, error_line(code, message))

    def end(self, code: str, message: str) -> None:
        """End it, and tell why those who wait for more."""
        with self._lock:
            self._last_words = self._last_words or (code, message)
            if self._process is not None and self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _run(self) -> None:
        try:
            process = self._start(lambda: self._last_words is None)
            if process is not None:
                self._hear(process)
        except Exception as error:  # whatever the disk or the store has against it: those who wait are told
            log.warning("model_failed base=%s error=%r", self.base, error)
        self.over = True
        self._close_all()

    def _hear(self, process: Process) -> None:
        with self._lock:
            self._process = process
            for line in self._unsent:
                self._send(line)
            if self._last_words is not None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        with process:
            for text in process.stdout:
                line = json.loads(text)
                if "id" in line:
                    self._pass_on(line.pop("id"), line)
                else:
                    self._note(line)

    def _note(self, line: Mapping[str, Any]) -> None:
        """What it says of itself."""
        log.info("model_%s base=%s", line["type"], self.base)
        self.ready = line["type"] == "ready"
        if line["type"] == "failed":
            self._last_words = ("model_failed", f"The model cannot be loaded: {line['message']}")

    def _pass_on(self, name: str, line: Mapping[str, Any]) -> None:
        if line["type"] in ("done", "error"):
            self._close(name, line)
            return
        with self._lock:
            if name not in self._open:
                return
            self._open[name] = True
        try:
            heard = self._tell(name, line)
        except BrokerDown:
            heard = False
        if not heard:
            self._forgotten(name)
            self._send({"forget": name})

    def _close(self, name: str, line: Mapping[str, Any]) -> None:
        self._forgotten(name)
        with suppress(BrokerDown):
            self._tell(name, line)

    def _close_all(self) -> None:
        """It has ended: nobody is answered any more."""
        with self._lock:
            left = list(self._open)
        for name in left:
            self._close(name, error_line(*(self._last_words or CRASHED)))

    def _forgotten(self, name: str) -> None:
        with self._lock:
            self._open.pop(name, None)
            self._used = time.monotonic()

    def _send(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            if self._process is None:
                self._unsent.append(line)
                return
            assert self._process.stdin is not None
            with suppress(OSError, ValueError):  # it has just ended, and its pipe may be closed
                self._process.stdin.write(json.dumps(line) + "\n")
                self._process.stdin.flush()


def error_line(code: str, message: str) -> Mapping[str, str]:
    """What is told instead of an answer, or of the rest of one."""
    return {"type": "error", "code": code, "message": message}
