"""What the service needs, asked apart from all requests: a part that hangs holds up nobody who does not need it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""How long whoever asks waits for a check; then the part does not answer, until it does."""

FRESH_SECONDS = 2.0
"""How long a verdict is passed on."""


class Check:
    """One part: `ask` says whether it is there, or raises what it likes. One thread asks at a time, in its own time."""

    def __init__(self, name: str, ask: Callable[[], bool]) -> None:
        self._name, self._ask = name, ask
        self._lock = threading.Lock()
        self._asked: threading.Event | None = None
        self._at, self._verdict = -FRESH_SECONDS, False

    async def verdict(self) -> bool:
        """Whether the part is there."""
        if time.monotonic() - self._at >= FRESH_SECONDS:
            asked, end = self._begin(), time.monotonic() + ANSWER_SECONDS
            while not asked.is_set():
                if time.monotonic() >= end:
                    return False
                await asyncio.sleep(0.005)
        return self._verdict

    def _begin(self) -> threading.Event:
        with self._lock:
            if self._asked is None:
                self._asked = threading.Event()
                thread = threading.Thread(target=self._run, args=(self._asked,), name=f"check {self._name}")
                thread.daemon = True  # the process may end while a part hangs
                thread.start()
            return self._asked

    def _run(self, asked: threading.Event) -> None:
        try:
            found = self._ask()
        except Exception as error:
            log.warning("check_failed part=%s error=%r", self._name, error)
            found = False
        with self._lock:
            self._verdict, self._at, self._asked = found, time.monotonic(), None
        asked.set()


class Health:
    """All the checks, by name. `close` ends what they ask through."""

    def __init__(self, checks: Mapping[str, Callable[[], bool]], close: Callable[[], None]) -> None:
        self.close = close
        self._checks = {name: Check(name, ask) for name, ask in checks.items()}

    async def verdicts(self) -> dict[str, bool]:
        """Each part's verdict, all asked at once."""
        found = await asyncio.gather(*(check.verdict() for check in self._checks.values()))
        return dict(zip(self._checks, found, strict=True))
