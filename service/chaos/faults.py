"""What is done to a running system. Each fault lasts as long as its block, and is over behind it."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

import psutil
import redis

from service import embedded
from service.chaos.system import TRAINER, Part, System

Fault = Callable[[System, Random], AbstractContextManager[str]]
"""Gives what it was done to, for the history."""


def _any_part(system: System, chance: Random) -> Part:
    return chance.choice(system.parts)


def _worker(system: System, chance: Random) -> Part:
    return chance.choice(system.workers)


@contextmanager
def _killed(which: Callable[[System, Random], Part], system: System, chance: Random) -> Iterator[str]:
    part = which(system, chance)
    part.kill()
    yield part.name
    part.start()


@contextmanager
def _frozen(which: Callable[[System, Random], Part], system: System, chance: Random) -> Iterator[str]:
    """The part with all its processes stands still; past its lease, where the block takes that long."""
    part = which(system, chance)
    tree = part.tree()
    for process in tree:
        _signalled(process, signal.SIGSTOP)
    yield part.name
    for process in tree:
        _signalled(process, signal.SIGCONT)


@contextmanager
def _within(how: signal.Signals, role: str, system: System, chance: Random) -> Iterator[str]:
    """One of a worker's processes is killed, or stands still."""
    part = _worker(system, chance)
    found = [process for process in part.tree()[1:] if role in _command(process)]
    victim = chance.choice(found) if found else None
    if victim is not None:
        _signalled(victim, how)
    yield f"{part.name} {role} {victim and victim.pid}"
    if victim is not None:
        _signalled(victim, signal.SIGCONT)


@contextmanager
def _flushed(system: System, chance: Random) -> Iterator[str]:  # noqa: ARG001 - one signature for all
    """Whatever was said and not heard yet is lost."""
    with redis.Redis(unix_socket_path=str(embedded.socket_path(system.folder)), socket_timeout=5) as server:
        with suppress(redis.RedisError, OSError):
            server.flushall()
        yield "broker"


@contextmanager
def _locked(system: System, chance: Random) -> Iterator[str]:  # noqa: ARG001
    """Another program holds the database's write lock."""
    connection = sqlite3.connect(system.folder / "allo.db", timeout=20, isolation_level=None)
    try:
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
        yield "database"
    finally:
        connection.close()


@contextmanager
def _flipped(system: System, chance: Random) -> Iterator[str]:
    """A bit of a checkpoint that somebody may go on from."""
    found = sorted(path for name in ("one", "two") for path in (system.folder / name / "work").glob("*/*.json"))
    path = chance.choice(found) if found else None
    if path is not None:
        with suppress(OSError):
            _flip(path, chance)
    yield str(path and path.relative_to(system.folder))


@contextmanager
def _drained(system: System, chance: Random) -> Iterator[str]:
    """A worker is told to end, as at an upgrade, and started again."""
    part = _worker(system, chance)
    if part.process is not None:
        part.process.terminate()
    yield part.name
    if part.process is not None:
        with suppress(Exception):
            part.process.wait(10)
    part.kill()
    part.start()


def _flip(path: Path, chance: Random) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        where = chance.randrange(size)
        file.seek(where)
        byte = file.read(1)[0] ^ (1 << chance.randrange(8))
        file.seek(where)
        file.write(bytes([byte]))


def _signalled(process: psutil.Process, how: signal.Signals) -> None:
    with suppress(ProcessLookupError, psutil.Error):
        os.kill(process.pid, how)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


FAULTS: Mapping[str, Fault] = {
    "kill a part": partial(_killed, _any_part),
    "kill a worker": partial(_killed, _worker),
    "freeze a part": partial(_frozen, _any_part),
    "freeze a worker": partial(_frozen, _worker),
    "kill a pool's process": partial(_within, signal.SIGKILL, "-m worker"),
    "kill a scheduler": partial(_within, signal.SIGKILL, "worker.scheduler"),
    "freeze a scheduler": partial(_within, signal.SIGSTOP, "worker.scheduler"),
    "kill a supervisor": partial(_within, signal.SIGKILL, "worker.supervisor"),
    "freeze a supervisor": partial(_within, signal.SIGSTOP, "worker.supervisor"),
    "kill a trainer": partial(_within, signal.SIGKILL, TRAINER),
    "freeze a trainer": partial(_within, signal.SIGSTOP, TRAINER),
    "drain a worker": _drained,
    "flush the broker": _flushed,
    "lock the database": _locked,
    "flip a bit": _flipped,
}
