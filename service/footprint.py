"""What a process that runs for long holds of memory: what its start took and nobody needs goes back to the system."""

from __future__ import annotations

import ctypes
import gc

_LIBC = ctypes.CDLL(None)
_M_ARENA_MAX = -8
"""malloc.h of glibc; other libraries have neither call."""


def one_heap() -> None:
    """Threads share one heap: those of an interpreter hardly ever allocate at once, and each would hold one of its
    own. To be called before there are any."""
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def settle() -> None:
    """To be called once all is loaded that stays. Garbage goes, and free pages; and no collection looks at what is left
    any more, nor writes to its pages, which forks of this process share."""
    gc.collect()
    gc.freeze()
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
