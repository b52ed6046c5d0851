"""Ends what an earlier attempt left on this machine, found by its environment.

A supervisor leaves nothing. This is for what no supervisor can do: the daemons of a command whose supervisor was
itself killed, and a whole attempt whose runner hangs while its stage was given to us.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import psutil

from worker.supervisor import SUPERVISOR_MARK, process_start

STAGE_MARK = "ALLO_STAGE_ID"
"""In the environment of every supervisor and of everything that it supervises."""


def sweep(stage_id: str, seconds: float = 10.0) -> int:
    """Kill every process of this stage, and whatever outlived its supervisor; return how many there were.

    Only the owner of a stage may call this: after its claim, before it starts a process of its own.
    """
    leftovers = [(pid, process_start(pid)) for pid in psutil.pids() if _is_leftover(pid, stage_id)]
    end = time.monotonic() + seconds
    while sum(_kill(pid, start) for pid, start in leftovers) and time.monotonic() < end:
        time.sleep(0.02)
    return len(leftovers)


def _is_leftover(pid: int, stage_id: str) -> bool:
    try:
        environment = psutil.Process(pid).environ()
    except (psutil.Error, OSError):  # ended, or another user's
        return False
    if STAGE_MARK not in environment or pid == os.getpid():
        return False
    return environment[STAGE_MARK] == stage_id or _outlived(environment.get(SUPERVISOR_MARK))


def _outlived(mark: str | None) -> bool:
    """Whether the supervisor of this mark is gone; what bears no mark is a supervisor itself."""
    if mark is None:
        return False
    pid, _, start = mark.partition(":")
    return process_start(int(pid)) != start


def _kill(pid: int, start: str | None) -> bool:
    """Kill a process; whether it was still there to be killed, and still the same."""
    if start is None or process_start(pid) != start:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True
