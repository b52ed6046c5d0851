"""No process outlives the one that started it: the kernel's own words for it, on Linux. Standard library alone."""

from __future__ import annotations

import ctypes
import os
import signal

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def die_with(parent: int, by: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, and see that the parent has not ended already.

    The parent is the thread that started this process: it must not be one that ends before.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def adopt() -> None:
    """Be the parent of whatever descends from here and loses its own."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
