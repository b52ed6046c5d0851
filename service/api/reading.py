"""What is read over HTTP: in a few threads of its own, and rendered once for as long as nothing changes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from functools import partial, wraps
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Response
from pydantic_core import to_json

from service.db import Database

READERS = 4
"""Threads that read. More only fight for the interpreter: with 40, the slowest of 32 pollers waits four times as
long. Uploads and whatever writes have the other threads."""

_KEPT = 512
_LARGEST = 2**16


def reading(endpoint: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """An endpoint that only reads: it runs in one of the readers' threads. It must take `parts`."""

    @wraps(endpoint)
    async def in_a_reader(**values: Any) -> Any:
        return await to_thread.run_sync(partial(endpoint, **values), limiter=values["parts"].readers)

    return in_a_reader


def make_readers() -> CapacityLimiter:
    """The readers of one app."""
    return CapacityLimiter(READERS)


def shown(value: Any) -> Response:
    """A JSON answer of what render made, which needs no look at every value of it again."""
    return Response(_json(value), media_type="application/json")


def _json(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")


class Answers:
    """Rendered answers, each kept while the database has the version, and the clock the second, that it was made at:
    whoever polls a job that runs costs a look at the version. So no answer is ever out of date."""

    def __init__(self, database: Database, readers: CapacityLimiter) -> None:
        self._database, self._readers = database, readers
        self._kept: OrderedDict[Hashable, tuple[Hashable, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    async def get(self, name: Hashable, make: Callable[[], Any]) -> Response:
        """The answer of this name; `make` gives what is to be shown, in a reader's thread, where it must be made anew.
        Where it need not, and a look at the version keeps nobody waiting, no thread is asked."""
        body = self._fresh(name, self._version()) if self._database.is_watched else None
        if body is None:
            body = await to_thread.run_sync(self._made, name, make, limiter=self._readers)
        return Response(body, media_type="application/json")

    def _made(self, name: Hashable, make: Callable[[], Any]) -> bytes:
        version = self._version()  # before it is made: a change meanwhile shows
        body = self._fresh(name, version)
        if body is None:
            body = _json(make())
            self._keep(name, (version, body))
        return body

    def _version(self) -> Hashable:
        return self._database.version(), self._database.now()

    def _fresh(self, name: Hashable, version: Hashable) -> bytes | None:
        with self._lock:
            kept = self._kept.get(name)
        return kept[1] if kept is not None and kept[0] == version else None

    def _keep(self, name: Hashable, answer: tuple[Hashable, bytes]) -> None:
        with self._lock:
            if len(answer[1]) <= _LARGEST:
                self._kept[name] = answer
                self._kept.move_to_end(name)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
