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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

FILE = "serving.lock"
"""In the data folder; it holds the number of the process that answers, while there is one."""

_KILLED_SECONDS = 30.0
"""For how long a killed model is waited for: one that is stuck in the kernel must not hold up training."""


@contextmanager
def training(data_dir: Path, patience: float) -> Iterator[None]:
    """Around a stage. A model that still answers has so many seconds to end by itself; then it is ended."""
    descriptor = _opened(data_dir)
    try:
        if not _held_within(descriptor, patience):
            _end(descriptor)
            if not _held_within(descriptor, _KILLED_SECONDS):
                log.warning("model_stays advice=its process cannot be ended: the stage begins beside it")
        yield
    finally:
        os.close(descriptor)


def answering(data_dir: Path) -> int | None:
    """The lock for a model's process, as a descriptor to be inherited; None while a stage runs, or another model."""
    descriptor = _opened(data_dir)
    if _lock(descriptor, fcntl.LOCK_EX):
        os.ftruncate(descriptor, 0)
        return descriptor
    os.close(descriptor)
    return None


def note(descriptor: int, process: int) -> None:
    """Write down which process answers."""
    os.pwrite(descriptor, str(process).encode(), 0)


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
    until = time.monotonic() + seconds
    while not _lock(descriptor, fcntl.LOCK_SH):
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


def _end(descriptor: int) -> None:
    """The lock is held, so the process that stands in the file is the one that holds it."""
    process = os.pread(descriptor, 20, 0)
    if process:
        log.warning("model_ended_for_training pid=%s", process.decode())
        with suppress(ProcessLookupError):
            os.killpg(int(process), signal.SIGKILL)
