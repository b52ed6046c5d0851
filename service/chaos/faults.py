"""What is done to a running system. Each fault lasts as long as its block and is over behind it; what has ended by then
must be started again.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service import embedded
from service.chaos.part import Part
from service.chaos.system import TRAINER, System
from service.chaos.wire import Wire

Fault = Callable[[System, Random], AbstractContextManager[str]]
"""Gives what it was done to, for the history."""


_DAY = 86_400
_AHEAD = (-30 * _DAY, -3 * 3600, -60, 60, 3 * 3600, 30 * _DAY)
_LEFT = (0, 4096, 65_536, 300_000)


def _any_part(system: System, chance: Random) -> Part:
    return chance.choice(system.parts)


def _mortal_part(system: System, chance: Random) -> Part:
    return chance.choice([part for part in system.parts if part.mortal])


def _worker(system: System, chance: Random) -> Part:
    return chance.choice(system.workers)


@contextmanager
def _killed(which: Callable[[System, Random], Part], system: System, chance: Random) -> Iterator[str]:
    part = which(system, chance)
    part.kill()
    yield part.name


@contextmanager
def _frozen(which: Callable[[System, Random], Part], system: System, chance: Random) -> Iterator[str]:
    """The part with all its processes stands still; past its lease, where the block takes that long."""
    part = which(system, chance)
    with _still(part.tree()):
        yield part.name


@contextmanager
def _suspended(system: System, chance: Random) -> Iterator[str]:  # noqa: ARG001
    """All stand still at once, as where a machine sleeps: whoever wakes first finds nobody's beats."""
    with _still([process for part in system.parts for process in part.tree()]):
        yield "all parts"


@contextmanager
def _still(processes: Sequence[psutil.Process]) -> Iterator[None]:
    for process in processes:
        _signalled(process, signal.SIGSTOP)
    yield
    for process in processes:
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
    path = str(embedded.socket_path(system.folder))
    with redis.Redis(unix_socket_path=path, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as server:
        with suppress(redis.RedisError, OSError):
            server.flushall()
        yield "broker"


@contextmanager
def _locked(system: System, chance: Random) -> Iterator[str]:  # noqa: ARG001
    """Another program holds the database's write lock; PostgreSQL's is of the tables that every stage needs."""
    with ExitStack() as held:
        if system.ground.sqlite is not None:
            connection = held.enter_context(closing(sqlite3.connect(system.ground.sqlite, timeout=20)))
            connection.isolation_level = None
            with suppress(sqlite3.OperationalError):
                connection.execute("BEGIN IMMEDIATE")
        else:
            with suppress(DBAPIError):
                engine = held.enter_context(system.database.engine.connect())
                engine.execute(text("LOCK TABLE jobs, stages IN ACCESS EXCLUSIVE MODE"))
        yield "database"


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
def _misled(system: System, chance: Random) -> Iterator[str]:
    """A part's wall clock jumps, and back."""
    part = chance.choice([part for part in system.parts if part.told])
    ahead = chance.choice(_AHEAD)
    assert part.told is not None
    part.told.tell(ahead=ahead)
    yield f"{part.name} by {ahead} s"
    part.told.tell()


@contextmanager
def _unsynced(system: System, chance: Random) -> Iterator[str]:
    """The next one or two fsyncs of a part, or of what it started, fail; PostgreSQL ends at it, and recovers."""
    writing = (system.api, *system.workers, system.ground.postgres)
    part = chance.choice([part for part in writing if part and part.told])
    failing = chance.choice((1, 2))
    assert part.told is not None
    part.told.tell(failing=failing)
    yield f"{part.name}: {failing}"
    part.told.tell()


@contextmanager
def _filled(system: System, chance: Random) -> Iterator[str]:
    """A disk has no room left, or next to none."""
    disk, left = chance.choice(system.disks), chance.choice(_LEFT)
    with disk.full(left):
        yield f"{disk.folder.name}: {left} bytes left"


@contextmanager
def _wire(how: Callable[[Wire, Random], object], system: System, chance: Random) -> Iterator[str]:
    """A part is cut off from a server, or reaches it badly."""
    wire = chance.choice(system.wires)
    did = how(wire, chance)
    yield f"{wire.name}{did or ''}"
    wire.mend()


def _slow(wire: Wire, chance: Random) -> str:
    seconds = chance.choice((0.05, 0.3, 1.0))
    wire.slow(seconds)
    return f" by {seconds} s"


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
    "kill a part": partial(_killed, _mortal_part),
    "kill a worker": partial(_killed, _worker),
    "freeze a part": partial(_frozen, _any_part),
    "freeze a worker": partial(_frozen, _worker),
    "suspend the machine": _suspended,
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
    "set a clock": _misled,
    "fail an fsync": _unsynced,
    "fill a disk": _filled,
    "cut a wire": partial(_wire, lambda wire, _: wire.cut()),
    "clog a wire": partial(_wire, lambda wire, _: wire.stick("out", "in")),
    "deafen a wire": partial(_wire, lambda wire, _: wire.stick("in")),
    "slow a wire": partial(_wire, _slow),
}


def possible(system: System) -> list[str]:
    """The names of those that can be done here, in their order."""
    missing = set[str]()
    if not any(part.told for part in system.parts):
        missing |= {"set a clock", "fail an fsync"}
    if not system.disks:
        missing |= {"fill a disk"}
    return sorted(FAULTS.keys() - missing)
