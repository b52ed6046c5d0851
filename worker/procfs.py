"""What /proc shows of a process that was forked and never executed: its command line and its environment.

Both are the bytes that the kernel laid out at the last `execve`, so that a forked process shows its parent's, and
neither `ps` nor `worker.sweep` would know it. But they are the process's own memory: what was executed with room to
spare there may write over it, and so may whatever is forked from it, each its own copy (as `setproctitle` does).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOM = "ALLO_ROOM"
"""The variable whose bytes make room for marks: the last of its environment."""

_MARKS_BYTES, _SPACE = 512, "." * 2048
_ARGUMENTS, _ENVIRONMENT = 45, 47
"""Where a region's two ends stand in /proc/self/stat, counted behind the command's name."""


def with_room(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment to execute a process with, whose forks shall bear marks."""
    return {**environment, ROOM: "." * _MARKS_BYTES}


def with_space(command: Sequence[str]) -> list[str]:
    """A command line to execute a process with, whose forks shall show their own."""
    return [*command, _SPACE]


def take_space() -> None:
    """Execute this program anew, where it was executed without space for its forks' command lines."""
    if sys.orig_argv[-1] == _SPACE:
        show_command(sys.orig_argv[:-1])
    else:
        os.execv(sys.executable, with_space([sys.executable, *sys.orig_argv[1:]]))  # noqa: S606 - our own argv


def has_room() -> bool:
    """Whether this process was executed with room for marks. To be asked before the first are written."""
    start, end = _room()
    return ctypes.string_at(start, end - start) == _strings([f"{ROOM}={'.' * _MARKS_BYTES}"])


def show_marks(marks: Mapping[str, str]) -> None:
    """Show `marks` in this process's environment, in place of the room and of earlier marks."""
    start, end = _room()
    written = _strings(f"{name}={value}" for name, value in marks.items())
    if len(written) > end - start:
        raise ValueError(f"no room for {len(written)} bytes of marks")
    _write(start, end, written)


def show_command(command: Sequence[str]) -> None:
    """Show `command` as this process's command line; what is too long for it is cut off."""
    start, end = _region(_ARGUMENTS)
    _write(start, end, _strings(command)[: end - start - 1])


def _room() -> tuple[int, int]:
    end = _region(_ENVIRONMENT)[1]
    return end - len(f"{ROOM}={'.' * _MARKS_BYTES}\0"), end


def _region(field: int) -> tuple[int, int]:
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[field]), int(fields[field + 1])


def _strings(texts: Iterable[str]) -> bytes:
    return b"".join(text.encode(errors="surrogateescape") + b"\0" for text in texts)


def _write(start: int, end: int, content: bytes) -> None:
    """Write `content` and, up to the region's end, zeroes: a reader takes two of them for the end."""
    ctypes.memmove(start, content.ljust(end - start, b"\0"), end - start)
