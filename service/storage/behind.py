"""A blob on its way into a folder: hashed and written in a thread of its own, a little behind whoever brings it."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from service.storage import passing
from service.storage.checksums import Checksums
from service.storage.store import CHUNK, Blob

Publish = Callable[[Path, IO[bytes], Blob, "array[int]"], None]
"""Gives a written file its name: where it lies, itself open, what it holds, the checksums of its chunks."""

_BEHIND = 2
"""Chunks that wait to be hashed and written."""

_FLUSH = 16 * CHUNK
"""Bytes written between two hints to the kernel to begin with the disk: fsync then finds little left to do."""


class BehindWriter:
    """Fulfils `Writer`. Bytes are hashed and written in a thread of its own, a little behind whoever brings them: that
    takes the disk and a processor but hardly the interpreter, so whoever checks what he writes goes on meanwhile."""

    def __init__(self, publish: Publish, aside: Path, file: IO[bytes], cached: bool) -> None:
        """`cached`: memory is to keep what is written, as it is read next."""
        self._publish, self._aside, self._file, self._cached = publish, aside, file, cached
        self._digest, self._sums = hashlib.sha256(), Checksums()
        self._size = self._flushed = 0
        self._held: list[memoryview] = []
        self._held_bytes = 0
        self._hand = ThreadPoolExecutor(1)
        self._behind: deque[Future[None]] = deque()

    def write(self, data: bytes) -> int:
        place, view = 0, memoryview(data)
        while len(data) - place >= CHUNK - self._held_bytes:
            end = place + CHUNK - self._held_bytes
            self._held.append(view[place:end])
            self._hand_over()
            place = end
        self._held.append(view[place:])
        self._held_bytes += len(data) - place
        return len(data)

    def commit(self) -> Blob:
        while self._behind:
            self._behind.popleft().result()
        self._take(self._let_go())
        blob = Blob(size=self._size, sha256=self._digest.hexdigest())
        self._publish(self._aside, self._file, blob, self._sums.values())
        return blob

    def close(self) -> None:
        """Waits until nothing is being written any more."""
        self._hand.shutdown(cancel_futures=True)

    def _hand_over(self) -> None:
        """A whole chunk, whose checksum then is one of a piece."""
        if len(self._behind) == _BEHIND:
            self._behind.popleft().result()
        self._behind.append(self._hand.submit(self._take, self._let_go()))

    def _let_go(self) -> bytes:
        data = b"".join(self._held)
        self._held, self._held_bytes = [], 0
        return data

    def _take(self, data: bytes) -> None:
        passing.write(self._file, data, self._size, self._cached)
        self._size += len(data)
        self._digest.update(data)
        self._sums.update(data)
        if self._size - self._flushed >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        """Linux begins to write what is dirty in the range, and keeps it in memory until that is done."""
        os.posix_fadvise(self._file.fileno(), self._flushed, self._size - self._flushed, os.POSIX_FADV_DONTNEED)
        self._flushed = self._size
