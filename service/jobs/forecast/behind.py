"""What is done behind requests: one thing at a time, in turn, on a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Full, Queue
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Behind(Generic[Item]):
    """`work`, which raises nothing, on what was put; `waiting` of it at most. Its thread begins with the first."""

    def __init__(self, work: Callable[[Item], None], waiting: int) -> None:
        self._work, self._lock = work, threading.Lock()
        self._queue: Queue[Item] = Queue(waiting)
        self._thread: threading.Thread | None = None

    def put(self, item: Item) -> bool:
        """Whether there was room for it."""
        try:
            self._queue.put_nowait(item)
        except Full:
            return False
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)  # the process may end meanwhile
                self._thread.start()
        return True

    def _run(self) -> None:
        while True:
            self._work(self._queue.get())
