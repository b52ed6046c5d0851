"""The way to the database in a process where many threads want to go there at once.

Whoever waits for a write lock holds a thread. A gate bounds how many do, so that threads are left for those who only
read; and while the database does not answer, one asks for all: the others are told at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, TimeoutError

_PAUSE_SECONDS = 2.0


class DatabaseBusy(TimeoutError):
    """Too many wait already, or the database has just not answered. Later it may."""


class Gate:
    """Open to all. `Bounded` is for the process that serves requests."""

    @contextmanager
    def writer(self) -> Iterator[None]:
        yield

    @contextmanager
    def reader(self) -> Iterator[None]:
        yield


class Bounded(Gate):
    """`writers` may be inside or wait; whoever comes then is refused. After a connection that failed, for two seconds
    and for as long as the next attempt takes, one alone is let through."""

    def __init__(self, writers: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = threading.Semaphore(writers)
        self._clock, self._lock = clock, threading.Lock()
        self._away, self._next = False, 0.0

    @contextmanager
    def writer(self) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            raise DatabaseBusy("too many wait to write")
        try:
            with self.reader():
                yield
        finally:
            self._free.release()

    @contextmanager
    def reader(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        except DBAPIError as error:
            self._leave(away=error.connection_invalidated or _unconnected(error))
            raise
        except BaseException:
            self._leave(away=False)
            raise
        else:
            self._leave(away=False)

    def _enter(self) -> None:
        with self._lock:
            now = self._clock()
            if self._away and now < self._next:
                raise DatabaseBusy("the database does not answer")
            if self._away:
                self._next = float("inf")  # this one asks for all

    def _leave(self, away: bool) -> None:
        with self._lock:
            self._away, self._next = away, self._clock() + _PAUSE_SECONDS


def _unconnected(error: DBAPIError) -> bool:
    """Whether no connection came about, or the server broke off."""
    return getattr(error.orig, "sqlstate", "") is None
