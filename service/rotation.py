"""The logs of a data folder, kept to a size, whoever writes them: `allo up`, a worker, engines, strangers' libraries.

A log that has grown too large is copied aside, and emptied where it lies: its writers, which only append, notice
nothing, and need not be told.

    <folder>/api.log                what is written now; api.log.1 is what was before, api.log.2 before that
    <folder>/<stage>.<epoch>.log    of one attempt at a stage
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

EARLIER = 4
"""Copies of a log that stay beside it."""

_COPY = re.compile(r"\.log\.\d+$")
_OF_ATTEMPT = re.compile(r"\.\d+\.log$")


@dataclass(frozen=True)
class Tidied:
    """What a look did: logs that were begun anew, and files that were removed."""

    rotated: int
    removed: int


@dataclass(frozen=True)
class Logs:
    """The logs in a folder. None grows far beyond `largest` bytes; copies and attempts' logs go that nobody has written
    to for `seconds` (0: none goes for its age), and the oldest of them while all together are more than `total` bytes.
    Logs of attempts stay that have a folder in `runs`: these are under way."""

    folder: Path
    runs: Path
    largest: int
    total: int
    seconds: float
    clock: Callable[[], float] = time.time

    def look(self) -> Tidied:
        """Do what is due."""
        rotated = sum(self._begun_anew(path) for path in self.folder.glob("*.log"))
        return Tidied(rotated, self._remove_old())

    def _begun_anew(self, path: Path) -> bool:
        if path.stat().st_size <= self.largest:
            return False
        with path.open("r+b") as log, _copy_of(path, 0).open("wb") as copy:
            shutil.copyfileobj(log, copy)  # to the end that it has by then
            log.truncate(0)
        for number in range(EARLIER, 0, -1):
            with suppress(FileNotFoundError):
                _copy_of(path, number - 1).replace(_copy_of(path, number))
        return True

    def _remove_old(self) -> int:
        files = sorted(self._removable(), key=lambda item: item[0])
        over = sum(path.stat().st_size for path in self.folder.glob("*.log*")) - self.total
        removed = 0
        for written, size, path in files:
            if over > 0 or 0 < self.seconds <= self.clock() - written:
                path.unlink(missing_ok=True)
                over, removed = over - size, removed + 1
        return removed

    def _removable(self) -> Iterator[tuple[float, int, Path]]:
        """(when it was written to last, bytes, path) of what nobody writes to any more."""
        in_use = {run.name for run in self.runs.glob("*")}
        for path in self.folder.glob("*.log*"):
            name, _, _ = path.name.partition(".log")
            if _COPY.search(path.name) or (_OF_ATTEMPT.search(path.name) and name not in in_use):
                found = path.stat()
                yield found.st_mtime, found.st_size, path


def _copy_of(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
