"""A folder of blobs that has a size: those that nobody has used for longest make room for others."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from service.storage.local import LocalStore


class Cache(LocalStore):
    """Of many processes on one machine."""

    def __init__(self, root: Path, limit: int) -> None:
        super().__init__(root)
        self.root, self._limit = root, limit

    def takes(self, size: int) -> bool:
        """Whether a blob of that size may lie here."""
        return size <= self._limit

    def use(self, sha256: str) -> bool:
        """Whether the blob is here; from now on it was used last. The time of access is set, not left to the mount, and
        that of the change stays, for it is part of the blob's mark."""
        path = self._path(sha256)
        with suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return True
        return False

    def trim(self, coming: int) -> None:
        """Makes room for so many bytes."""
        files = [path for path in self._blobs.glob("*/*") if not path.suffix]
        found = []
        for path in files:
            with suppress(FileNotFoundError):
                state = path.stat()
                found.append((state.st_atime_ns, state.st_size, path.name))
        over = sum(size for _, size, _ in found) + coming - self._limit
        for _, size, name in sorted(found):
            if over <= 0:
                return
            self.delete(name)
            over -= size

    def empty(self) -> None:
        """Makes all the room there is."""
        self.trim(self._limit)
