"""Which claims have a living process behind them: each stands in a file, with a lock on it that ends with its process.

So a worker's scheduler knows at its next look that a process of its pool has died, and, started again, what died with
the whole worker: no lease is waited out. What cannot be known so, another host's death above all, its lease tells.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UNLOCKED = ".new"


@contextmanager
def held(data_dir: Path, stage_id: str, epoch: int) -> Iterator[None]:
    """Hold the claim, which is about to be made at this epoch, for as long as this process runs the block."""
    folder = data_dir / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(_UNLOCKED, dir=folder)  # no process that is started from here inherits it
    path = Path(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps([stage_id, epoch]).encode())
        path = path.rename(path.with_suffix(""))  # it is seen once it is locked
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def bury(data_dir: Path, lost: Callable[[str, int], object]) -> None:
    """Tell of each claim whose process is gone, and forget it, unless telling raises."""
    for path in (data_dir / "claims").glob("*"):
        words = None if path.suffix == _UNLOCKED else _left(path)
        if words:
            stage_id, epoch = json.loads(words)
            lost(str(stage_id), int(epoch))
        if words is not None:  # a power cut may keep the name and lose the words: its lease tells
            path.unlink(missing_ok=True)


def _left(path: Path) -> bytes | None:
    """What stands in a claim whose process is gone; None of one that is held, or was let go just now."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file.read() if os.fstat(file.fileno()).st_nlink else None
    except (BlockingIOError, FileNotFoundError):
        return None
