"""What everybody did and saw, a JSON line each, in the order in which it was noted.

    {"at": 12.345, "who": "visitor", "did": "submit", …}

`at` is seconds since the start, by this process's monotonic clock. `who` and what it notes:

    chaos      trial (seed) · the name of a fault (part, seconds) · over
    visitor    upload, submit, cancel, pause, resume, download: what it asked for, and the status that came back, which
               is null where no answer came
    database   job (job, status, error) · stage (job, name, status, epoch, attempt, beat) · event (job, seq, message) at
               the end of a trial
    store      artifact (sha256, verified) · file (file, sha256, verified)
    system     orphan (pid, command) · unfinished (job)
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class History:
    """A file of lines, which several threads write. `lines` are those of the trial that began last."""

    def __init__(self, path: Path) -> None:
        self._file, self._began, self._lock = path.open("a", encoding="utf-8"), time.monotonic(), threading.Lock()
        self.lines: list[Line] = []

    def begin(self, seed: int) -> None:
        """Another trial begins."""
        self.lines.clear()
        self.note("chaos", "trial", seed=seed)

    def note(self, who: str, did: str, **what: Any) -> None:
        """Note what somebody did."""
        with self._lock:
            line = {"at": round(time.monotonic() - self._began, 3), "who": who, "did": did, **what}
            self.lines.append(line)
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Nothing more is noted."""
        self._file.close()


def read(path: Path) -> Iterator[Line]:
    """The lines of a history."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
