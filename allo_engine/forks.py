"""Processes forked from one that has the engine loaded, which takes seconds, and has computed nothing yet."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn


def fork(run: Callable[[], int]) -> int:
    """Fork a child that ends with what `run()` returns; the child's pid. The child never comes back from here."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        leave(_status(run))
    return pid


def forked_well() -> bool:
    """Whether torch can reach a device in this fork. Not where something that was imported had asked for one before."""
    import torch

    return not torch.cuda._is_in_bad_fork()


def leave(status: int) -> NoReturn:
    """End this process as an interpreter ends, but for taking apart what torch has loaded: that takes most of a
    second, and the kernel does it at once."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # whoever listened is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _status(run: Callable[[], int]) -> int:
    """The exit status that an interpreter would end with."""
    try:
        return run()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
