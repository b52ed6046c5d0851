"""Ends what an earlier attempt left on this machine, found by its environment.

A supervisor leaves nothing. This is for what no supervisor can do: the daemons of a command whose supervisor was
itself killed, and a whole attempt whose runner hangs while its stage was given to us.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from worker.supervisor import SUPERVISOR_MARK, process_start

STAGE_MARK = "ALLO_STAGE_ID"
"""In the environment of every supervisor and of everything that it supervises."""

_SECONDS = 10.0
"""For how long a killed process is waited for: one that is stuck in the kernel must not hold up the next attempt."""


def sweep(stage_id: str) -> int:
    """Kill every process of this stage, and whatever outlived its supervisor; return how many there were.

    Only the owner of a stage may call this: after its claim, before it starts a process of its own.
    """
    return _kill_all(lambda marks: marks.get(STAGE_MARK) == stage_id or _outlived(marks))


def sweep_outlived() -> int:
    """Kill whatever outlived its supervisor, of any stage: that is nobody's, so anybody may."""
    return _kill_all(_outlived)


def _kill_all(condemned: Callable[[Mapping[str, str]], bool]) -> int:
    found = [(pid, process_start(pid)) for pid in psutil.pids() if pid != os.getpid() and condemned(_environment(pid))]
    end = time.monotonic() + _SECONDS
    while sum(_kill(pid, start) for pid, start in found) and time.monotonic() < end:
        time.sleep(0.02)
    return len(found)


def marked(stage_id: str) -> list[int]:
    """The processes of this stage."""
    return [pid for pid in psutil.pids() if _environment(pid).get(STAGE_MARK) == stage_id]


def _environment(pid: int) -> Mapping[str, str]:
    """A process's; empty of one that has ended, is another user's, or counts pids otherwise than we do: the marks of a
    container's processes name supervisors that only the container knows."""
    try:
        alike = Path(f"/proc/{pid}/ns/pid").readlink() == Path("/proc/self/ns/pid").readlink()
        return dict(psutil.Process(pid).environ()) if alike else {}
    except (psutil.Error, OSError):
        return {}


def _outlived(marks: Mapping[str, str]) -> bool:
    """Whether the supervisor that these marks name is gone; what names none is a supervisor itself."""
    if SUPERVISOR_MARK not in marks:
        return False
    pid, _, start = marks[SUPERVISOR_MARK].partition(":")
    return process_start(int(pid)) != start


def _kill(pid: int, start: str | None) -> bool:
    """Kill a process; whether it was still there to be killed, and still the same."""
    if start is None or process_start(pid) != start:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True
