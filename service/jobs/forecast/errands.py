"""What takes the engine seconds, asked of it in processes of their own: one at a time, in turn, and kept in memory."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, Protocol, TypeVar

from service.jobs.errors import TooMany
from service.jobs.forecast.behind import Behind
from service.storage.store import Store

KEPT, WAITING, OWN = 256, 8, 4
"""Answers that are kept; errands that may wait; and of these, one owner's."""


class Errand(Hashable, Protocol):
    """What is asked, by its content. The owner is part of it: nobody learns from how soon an answer comes that another
    has asked the same."""

    @property
    def owner(self) -> str: ...


Asked = TypeVar("Asked", bound=Errand)
Found = TypeVar("Found")


class Errands(Generic[Asked, Found]):
    """Runs errands behind the requests of this process."""

    def __init__(self, run: Callable[[Asked], Found]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._known: OrderedDict[Asked, Future[Found]] = OrderedDict()
        self._behind = Behind(self._see_to, WAITING)

    def ask(self, asked: Asked) -> Future[Found]:
        """What comes of it: at once where it is known, and what failed is tried again. Raises TooMany."""
        with self._lock:
            known = self._known.get(asked)
            if known is None or (known.done() and known.exception()):
                known = self._known[asked] = self._queued(asked)
            self._known.move_to_end(asked)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
            return known

    def _queued(self, asked: Asked) -> Future[Found]:
        waiting = [one for one, future in self._known.items() if not future.done() and one.owner == asked.owner]
        future: Future[Found] = Future()
        if len(waiting) >= OWN or not self._behind.put((asked, future)):
            raise TooMany("Many such requests are being worked on: ask again in a while.")
        return future

    def _see_to(self, errand: tuple[Asked, Future[Found]]) -> None:
        asked, future = errand
        try:
            future.set_result(self._run(asked))
        except Exception as error:
            future.set_exception(error)


class Scratch:
    """Folders for what the engine is to read, each for one errand. It alone uses `root`."""

    def __init__(self, store: Store, root: Path) -> None:
        self._store, self._root = store, root
        shutil.rmtree(root, ignore_errors=True)  # of a process that was killed

    @contextmanager
    def holding(self, files: Iterable[tuple[str, str]]) -> Iterator[Path]:
        """A folder with these contents of the store in it, each as (path, sha256). Raises StoreError."""
        self._root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._root) as name:
            for path, sha256 in files:
                self._store.fetch(sha256, Path(name) / path)
            yield Path(name)
