"""What one owner may ask of this process: requests a minute, and how many, and streams, are open at once."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.jobs.errors import TooMany


@dataclass(frozen=True)
class Allowance:
    """What is left after a request: `taken` False means that there was nothing left for it. `wait` and `reset` are
    seconds until there is one more, and until all are there again."""

    taken: bool
    limit: int
    remaining: int
    wait: float
    reset: float

    def headers(self) -> dict[str, str]:
        """As OpenAI's clients know them."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{math.ceil(self.reset)}s",
        }


_MOST = 10_000
"""Owners, or addresses, that are remembered before those are forgotten that there is nothing to remember of."""


class Rates:
    """A token bucket an owner: it holds a minute's requests and fills evenly. 0 a minute: no limit."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = per_minute, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, owner: str) -> Allowance | None:
        """Takes one request from the owner's; None where there is no limit. From one thread at a time."""
        if not self._limit:
            return None
        now, a_second = self._clock(), self._limit / 60
        left, at = self._buckets.get(owner, (float(self._limit), now))
        left = min(left + (now - at) * a_second, float(self._limit))
        taken = left >= 1
        left -= taken
        if len(self._buckets) >= _MOST and owner not in self._buckets:  # whoever rested for a minute has all again
            self._buckets = {name: kept for name, kept in self._buckets.items() if now - kept[1] < 60}
        self._buckets[owner] = (left, now)
        wait = 0.0 if left >= 1 else (1 - left) / a_second
        return Allowance(taken, self._limit, int(left), wait, (self._limit - left) / a_second)


class AtOnce:
    """Counts what is open of each owner; `what` it is, in the plural."""

    def __init__(self, an_owner: int, what: str) -> None:
        self._most, self._what, self._lock = an_owner, what, threading.Lock()
        self._open: Counter[str] = Counter()

    @contextmanager
    def open(self, owner: str) -> Iterator[None]:
        """For as long as one is open. Raises TooMany where the owner has as many as allowed."""
        with self._lock:
            if self._open[owner] >= self._most:
                raise TooMany(f"You have {self._most} {self._what} open: wait for one of them to end.")
            self._open[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[owner] -= 1
                if not self._open[owner]:
                    del self._open[owner]
