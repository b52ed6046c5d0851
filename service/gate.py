"""The way to the database in a process where many threads want to go there at once.

Whoever waits for a write lock holds a thread. A gate bounds how many do, so that threads are left for those who only
read; they take turns; and while the database does not answer, one asks for all: the others are told at once.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, TimeoutError

_PAUSE_SECONDS, _TURN_SECONDS = 2.0, 5.0


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


class Turns:
    """`inside` at once; the others in the order in which they came. A semaphore lets those in who come just then."""

    def __init__(self, inside: int) -> None:
        self._lock, self._free = threading.Lock(), inside
        self._queue = deque[threading.Lock]()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def take(self, seconds: float) -> bool:
        """Waits so long; whether it is the caller's turn, who must give it back."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            mine = threading.Lock()
            mine.acquire()
            self._queue.append(mine)
        if mine.acquire(timeout=seconds):
            return True
        with self._lock:
            if mine not in self._queue:  # it came at this very moment
                return True
            self._queue.remove(mine)
            return False

    def give_back(self) -> None:
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1


class Bounded(Gate):
    """`writers` may be inside or wait; whoever comes then is refused. After a connection that failed, for two seconds
    and for as long as the next attempt takes, one alone is let through.

    `inside` are let in at once, and the others in the order in which they came: SQLite takes one writer at a time, and
    would have each look again after pauses of up to 0.1 s, whoever came first. Those who waited while one inside found
    that another program writes are refused with it.
    """

    def __init__(self, writers: int, inside: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.turns = Turns(inside)
        self._free = threading.Semaphore(writers)
        self._clock, self._lock = clock, threading.Lock()
        self._away, self._next = False, 0.0
        self._found_locked = -math.inf

    @contextmanager
    def writer(self) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            raise DatabaseBusy("too many wait to write")
        try:
            with self._turn(), self.reader():
                yield
        finally:
            self._free.release()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        came = self._clock()
        if not self.turns.take(_TURN_SECONDS):
            raise DatabaseBusy("those who write take long")
        try:
            if came < self._found_locked:
                raise DatabaseBusy("another program writes")
            yield
        except DBAPIError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                self._found_locked = self._clock()
            raise
        finally:
            self.turns.give_back()

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
