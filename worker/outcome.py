"""How an attempt ended, told from what the engine said, how it exited and what interrupted it. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from worker.supervisor import EXIT_LEASE_LOST

EXIT_STOPPED = 75
"""The engine's exit status after SIGTERM, with a checkpoint to resume from (EX_TEMPFAIL)."""

DISK_FULL = "disk_full"
"""The engine's code for a disk that had no room for what it wrote."""

RETRIED = frozenset({"internal", "other_code", "out_of_memory"})
"""The engine's own error codes that another attempt may cure; all others are the user's to cure."""


class Interrupt(Enum):
    """Why an attempt must end before its engine does."""

    CANCELLED = "the job was cancelled"
    FENCED = "another attempt owns the stage"
    BROKEN = "the worker's own signs of life ended with an error that nobody foresaw"


@dataclass(frozen=True)
class Succeeded:
    """The engine wrote its outputs and said so."""

    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """The attempt failed; `retry` where another attempt may succeed."""

    code: str
    message: str
    retry: bool


@dataclass(frozen=True)
class Unreadable:
    """What it was to read cannot be had from the store: the content `sha256`."""

    sha256: str
    code: str = "corrupt_artifact"


@dataclass(frozen=True)
class Released:
    """Given back, to go on from its checkpoint: it counts as no attempt."""


@dataclass(frozen=True)
class NoRoom:
    """Its worker's disk is full: it is given back once there is room, there or on another worker, which takes it."""


@dataclass(frozen=True)
class Cancelled:
    """Ended because its job was cancelled."""


@dataclass(frozen=True)
class Abandoned:
    """Not ours any more: there is nothing to write."""


Outcome = Succeeded | Failed | Unreadable | Released | NoRoom | Cancelled | Abandoned


OVER = Failed(
    "deadline",
    "The job's stages have run for its max_seconds. What finished ones made is kept, and so is this one's last "
    "checkpoint: a retry goes on from there, with all of that time or with a max_seconds of its own.",
    retry=False,
)
"""The job's time is over."""


@dataclass(frozen=True)
class Ending:
    """What is known of an engine that has ended. `last` is its last `result` or `error` line; `stopped`: it was asked
    to stop at a checkpoint; `starved`: the kernel has killed for want of memory since it began, None where it does not
    say; `over`: it was asked to stop because the job's time is over; `stalled`: it was killed for so many seconds
    without a word of progress."""

    status: int
    last: Mapping[str, Any] | None
    stopped: bool
    log_tail: str
    starved: bool | None = None
    over: bool = False
    stalled: float | None = None


def judge(ending: Ending, interrupt: Interrupt | None) -> Outcome:
    """Interruptions first, then what the engine said of itself, then how it exited."""
    if interrupt is not None:
        return interrupted(interrupt)
    if ending.last and ending.last["type"] == "result" and ending.status == 0:
        return Succeeded(ending.last.get("metrics", {}))
    if ending.over:
        return OVER
    if ending.stalled is not None:
        return Failed("stalled", _stalled(ending.stalled, ending.log_tail), retry=True)
    if ending.status in (EXIT_STOPPED, EXIT_LEASE_LOST) or ending.stopped:  # the fence tells whether it is ours to give
        return Released()
    if ending.last and ending.last["type"] == "error":
        code = str(ending.last.get("code", "internal"))
        if code == DISK_FULL:
            return NoRoom()
        return Failed(code, str(ending.last.get("message", "")), retry=code in RETRIED)
    return Failed("killed" if ending.status == 128 + signal.SIGKILL else "crashed", _crash(ending), retry=True)


def interrupted(interrupt: Interrupt) -> Outcome:
    """What becomes of an attempt that was interrupted."""
    if interrupt is Interrupt.BROKEN:
        return broken(interrupt.value)
    return Cancelled() if interrupt is Interrupt.CANCELLED else Abandoned()


def broken(what: str) -> Failed:
    """The attempt ended of the worker's own error."""
    return Failed("worker_error", f"The worker failed, not the training: {what}. Its log has more.", retry=True)


def _stalled(seconds: float, log_tail: str) -> str:
    told = (
        f"The training made no progress for {seconds:.0f} seconds, far longer than any step of it took, and was ended."
    )
    return f"{told} Where it stood:\n{log_tail}" if log_tail else told


def _crash(ending: Ending) -> str:
    tail = f" Its last words:\n{ending.log_tail}" if ending.log_tail else ""
    if ending.status == 128 + signal.SIGKILL:
        return f"The training process was killed (SIGKILL){_KILLED[ending.starved]}.{tail}"
    if ending.status > 128:
        return f"The training process was ended by {_signal_name(ending.status - 128)}.{tail}"
    if ending.status == 0:
        return f"The training process ended without a result.{tail}"
    return f"The training process ended with exit status {ending.status} and no error line.{tail}"


_KILLED = {
    True: " while memory ran out on its machine",
    False: " by somebody: the kernel has killed nothing for want of memory",
    None: ", most likely because memory ran out",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
