"""What the C library does with memory that is freed, where it is glibc."""

from __future__ import annotations

import ctypes
import platform


def keep_freed_memory() -> None:
    """Let what is freed stay with the process for the next row, where the C library is glibc.

    By default large blocks go back to the kernel as soon as they are freed and their pages are cleared anew each time,
    which takes about 3 % of a row's time.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def let_freed_memory_go() -> None:
    """The other way: blocks of a megabyte are the kernel's again as soon as they are freed. Weights that are gathered
    and let go, a layer after another, else leave gaps that add up to more than the model.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""malloc.h's names of what mallopt(3) sets."""
