"""Whose this worker's memory is: its stages', or that of a model which answers.

A lock on a file says so. The runner of each stage holds it together with the others'; the process of a model holds it
alone, for as long as it lives, whatever became of whoever started it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from worker.supervisor import process_start

log = logging.getLogger(__name__)

FILE = "serving.lock"
"""In the data folder; a line of it is a process that answers: its number, and when it started."""

_KILLED_SECONDS = 30.0
"""For how long a killed model is waited for: one that is stuck in the kernel must not hold up training."""

_LET_GO_SECONDS = 1.0
"""For whoever started the models to see that they are gone, and let the lock go, too."""


@contextmanager
def training(data_dir: Path, patience: float) -> Iterator[None]:
    """Around a stage. A model that still answers has so many seconds to end by itself; then it is ended."""
    descriptor = _opened(data_dir)
    try:
        if not _held_within(descriptor, patience):
            _end(descriptor)
            if not _held_within(descriptor, _LET_GO_SECONDS):
                log.warning("lock_stays advice=what starts models here hangs; they are gone, and the stage begins")
        _within(_KILLED_SECONDS, lambda: not _there(descriptor))  # the lock goes before the last of the memory
        yield
    finally:
        os.close(descriptor)


def answering(data_dir: Path) -> int | None:
    """The lock for models' processes, as a descriptor to be inherited; None while a stage runs, or a model is left."""
    descriptor = _opened(data_dir)
    if _lock(descriptor, fcntl.LOCK_EX):
        os.ftruncate(descriptor, 0)
        return descriptor
    os.close(descriptor)
    return None


def note(descriptor: int, process: int) -> None:
    """Write down one more process that answers."""
    line = f"{process}:{process_start(process)}\n".encode()
    os.pwrite(descriptor, line, os.fstat(descriptor).st_size)


def answers(data_dir: Path) -> bool:
    """Whether a model is there that answers."""
    descriptor = _opened(data_dir)
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _opened(data_dir: Path) -> int:
    return os.open(data_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int, how: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        return True
    return False


def _held_within(descriptor: int, seconds: float) -> bool:
    return _within(seconds, lambda: _lock(descriptor, fcntl.LOCK_SH))


def _within(seconds: float, true: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


def _end(descriptor: int) -> None:
    """Kill those that stand in the file, and wait until they are gone."""

    def gone() -> bool:
        there = _there(descriptor)
        for process in there:
            log.warning("model_ended_for_training pid=%s", process)
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        return not there

    _within(_KILLED_SECONDS, gone)


def _there(descriptor: int) -> list[int]:
    """Those that stand in the file, as far as they live."""
    lines = [line.partition(":") for line in os.pread(descriptor, 4096, 0).decode().splitlines()]
    return [int(process) for process, _, start in lines if process_start(int(process)) == start]
