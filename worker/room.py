"""A stage whose worker's disk is full waits there for room, and says so: that is no failure, and no attempt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_LEAST_BYTES = 2**24
"""Less is taken for a disk that is full."""

_LOOK_SECONDS = 0.5
_LONGEST_SECONDS = 600.0
"""After that the stage is tried again all the same: it may need less than what was freed."""

FULL = "The worker's disk is full ({} MB are free): the stage waits until there is room, and then goes on by itself."


def wait_for_room(
    folders: Iterable[Path], pause: float, tell: Callable[[str], object], ended: Callable[[], T | None]
) -> T | None:
    """Return once twice as much is free as is now where the least is, at least 16 MiB; or it has `ended` for another
    reason, which is returned. What the stage wrote so far lies there meanwhile: only what others free counts. Where
    that much is free already, others may have freed it meanwhile, or it is too little for this stage: it is tried again
    after `pause` seconds.
    """
    folders = list(folders)
    free, wanted = free_bytes(folders), wanted_bytes(folders)
    tell(FULL.format(free >> 20))
    end = time.monotonic() + (pause if free >= _LEAST_BYTES else _LONGEST_SECONDS)
    while (why := ended()) is None and free_bytes(folders) < wanted and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
    return why


def wanted_bytes(folders: Iterable[Path]) -> int:
    """The room that a stage waits for which found too little."""
    return max(_LEAST_BYTES, 2 * free_bytes(folders))


def free_bytes(folders: Iterable[Path]) -> int:
    """The room where there is the least."""
    return min(map(_free, folders))


def _free(folder: Path) -> int:
    """None where the disk can name no more files, or where a folder has lost the disk that it was on."""
    try:
        disk = os.statvfs(folder)
    except FileNotFoundError:
        return 0
    return disk.f_bavail * disk.f_frsize if disk.f_favail or not disk.f_files else 0
