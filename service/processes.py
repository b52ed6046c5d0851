"""Keeps a few programs running: starts them, starts again what ends, and ends them all in turn."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from allo_engine.orphans import die_with

_LONGEST_PAUSE = 30.0
_SETTLED_SECONDS = 60.0
_TAIL_BYTES = 2000


@dataclass(frozen=True)
class Program:
    """A program to keep. `patience`: seconds between SIGTERM and SIGKILL at its end."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    patience: float
    pass_fds: tuple[int, ...] = ()


@dataclass
class _Kept:
    """A program, its process, and how long to wait before it is started again."""

    program: Program
    process: subprocess.Popen[bytes]
    started: float
    pause: float = 1.0
    restart_at: float | None = None


@dataclass
class Keeper:
    """Owns the processes of its programs; SIGTERM reaches them even where this process is killed.

    It must be used from the main thread alone: the kernel's death signal follows the thread that started a process.
    `say` is told, in words for a person, whenever a program ended by itself.
    """

    say: Callable[[str], None]
    _kept: list[_Kept] = field(default_factory=list)

    def start(self, program: Program) -> None:
        """Start a program and keep it from now on."""
        self._kept.append(_Kept(program, _spawn(program), time.monotonic()))

    def tend(self) -> None:
        """Start again what ended, after a pause that doubles while it keeps ending soon."""
        now = time.monotonic()
        for kept in self._kept:
            if kept.restart_at is None and kept.process.poll() is not None:
                self._plan_restart(kept, now)
            if kept.restart_at is not None and now >= kept.restart_at:
                kept.process, kept.started, kept.restart_at = _spawn(kept.program), now, None

    def running(self, name: str) -> bool:
        """Whether a program's process is there."""
        return any(kept.program.name == name and kept.process.poll() is None for kept in self._kept)

    def stop(self) -> None:
        """End every program, the last started first: it may still need the ones before it."""
        while self._kept:
            _end(self._kept.pop())

    def _plan_restart(self, kept: _Kept, now: float) -> None:
        kept.pause = 1.0 if now - kept.started > _SETTLED_SECONDS else min(kept.pause * 2, _LONGEST_PAUSE)
        kept.restart_at = now + kept.pause
        ending = f"{kept.program.name} ended ({_describe(kept.process.returncode)})"
        self.say(f"{ending}; starting it again in {kept.pause:.0f} s. Its log is {kept.program.log}.")


def log_tail(path: Path) -> str:
    """The end of a log file."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace").strip()


def _spawn(program: Program) -> subprocess.Popen[bytes]:
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        return subprocess.Popen(
            program.command,
            env=dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches us alone, and we end them in order
            pass_fds=program.pass_fds,
            preexec_fn=partial(die_with, os.getpid(), signal.SIGTERM),
        )


def _end(kept: _Kept) -> None:
    kept.process.terminate()
    try:
        kept.process.wait(kept.program.patience)
    except subprocess.TimeoutExpired:
        kept.process.kill()
        kept.process.wait()


def _describe(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
