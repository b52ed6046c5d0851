"""How a supervisor comes to life: as a program of its own, or forked from a process that has the engine loaded.

Loading torch and transformers takes seconds, forking a process that has them takes milliseconds. Whichever way it
comes, a supervisor leads a session of its own, reads its orders from a pipe, holds the work folder's lock and bears its
stage's mark; where the warm process is missing, slow or broken, the stage starts cold.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from allo_engine.config import HARNESS_TASKS, TEACHER_KEY
from allo_engine.source import code_version
from worker import supervisor
from worker.procfs import with_room, with_space
from worker.sweep import STAGE_MARK

log = logging.getLogger(__name__)

_LOADING_SECONDS, _ANSWER_SECONDS = 60.0, 5.0
"""How long the warm process may take to load, and to fork: after that it is killed, and the stage starts cold."""


@dataclass(frozen=True)
class Launch:
    """What a supervisor is started with: its stage, its folder, its options, the command that it runs, the descriptors
    that it is given: a pipe for orders, one for what the command says, its log, and its work folder's lock; and what
    its environment has beside ours: the devices that the stage sees.
    """

    stage_id: str
    folder: Path
    options: Sequence[str]
    command: Sequence[str]
    orders: int
    words: int
    log: int
    lock: int
    environment: Mapping[str, str] = field(default_factory=dict)


class Started:
    """A supervisor that runs. `pidfd` is readable once it has ended."""

    def __init__(self, pidfd: int, status: Callable[[], int]) -> None:
        self.pidfd = pidfd
        self._status = cache(status)

    def wait(self) -> int:
        """Its exit status, once it has ended; −n where signal n ended it."""
        select.select([self.pidfd], [], [])
        return self._status()

    def close(self) -> None:
        """Let go of one that has ended."""
        self.wait()
        os.close(self.pidfd)


Start = Callable[[Launch], Started]
"""Brings a supervisor to life."""


def start_cold(launch: Launch) -> Started:
    """Execute a supervisor, which executes its command."""
    process = subprocess.Popen(
        [sys.executable, supervisor.__file__, *launch.options, "--", *launch.command],
        stdin=launch.orders,
        stdout=launch.words,
        stderr=launch.log,
        cwd=launch.folder,
        env={**engine_environment(), **launch.environment, STAGE_MARK: launch.stage_id},
        start_new_session=True,
        pass_fds=[launch.lock],
    )
    return Started(os.pidfd_open(process.pid), process.wait)


_OF_SERVICE, _OF_ENGINE = ("ALLO_", "AWS_"), {HARNESS_TASKS, TEACHER_KEY}


def engine_environment() -> dict[str, str]:
    """Ours without the service's settings and keys, which the engine has no use for."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_OF_SERVICE) or key in _OF_ENGINE}


class Warm:
    """The warm process of one slot, which ends with its owner. `program` is a command line `PYTHON -m MODULE`, whose
    module has `preload()`, which loads what every stage needs, `main(arguments) -> exit status`, and `forked_well()`,
    which says in a fork whether that can run `main`."""

    def __init__(self, program: Sequence[str]) -> None:
        self._program = list(program)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._loaded = False

    @property
    def pid(self) -> int | None:
        """The warm process, if there is one."""
        return self._process.pid if self._process else None

    def prepare(self) -> None:
        """Start the warm process, and do not wait for it."""
        with self._lock:
            self._socket = self._socket or self._make()

    def start(self, launch: Launch) -> Started:
        """Fork a supervisor, which forks its program. A warm process that fails is made anew, once: then cold."""
        with self._lock:
            for _ in range(2):
                self._socket = self._socket or self._make()
                started = self._fork(self._socket, launch)
                if started:
                    return started
                self._end()
        log.warning("cold_start stage_id=%s", launch.stage_id)
        return start_cold(launch)

    def close(self) -> None:
        """End the warm process; the stages that it started go on."""
        with self._lock:
            self._end()

    def _make(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                with_space([sys.executable, "-m", "worker.warm", str(theirs.fileno()), self._program[-1]]),
                stdin=subprocess.DEVNULL,
                env=with_room(engine_environment()),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(_LOADING_SECONDS)
        return ours

    def _end(self) -> None:
        if self._socket and self._process:
            self._socket.close()
            self._process.kill()
            self._process.wait()
        self._socket, self._process, self._loaded = None, None, False

    def _fork(self, connection: socket.socket, launch: Launch) -> Started | None:
        """None where the warm process does not do as it should, or has loaded other code than this process knows."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._loaded = self._loaded or connection.recv(100) == code_version().encode()
                if self._loaded:
                    descriptors = [launch.orders, launch.words, launch.log, launch.lock, theirs.fileno()]
                    socket.send_fds(connection, [self._request(launch)], descriptors)
            started = _supervisor_behind(ours)
        except OSError:
            started = None
        if started is None:
            ours.close()
        return started

    def _request(self, launch: Launch) -> bytes:
        program, arguments = self._program, launch.command[len(self._program) :]
        request: dict[str, object] = {
            "stage_id": launch.stage_id,
            "folder": str(launch.folder),
            "options": list(launch.options),
        }
        request |= {"program": program, "arguments": list(arguments), "environment": dict(launch.environment)}
        return json.dumps(request).encode()


def _supervisor_behind(channel: socket.socket) -> Started | None:
    """Take a new supervisor's pidfd, and only then let it go on: one that was given up never starts anything."""
    channel.settimeout(_ANSWER_SECONDS)
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not descriptors:
        return None
    try:
        channel.send(b"go")
    except OSError:
        os.close(descriptors[0])
        raise
    return Started(descriptors[0], partial(_last_word, channel))


def _last_word(channel: socket.socket) -> int:
    """The exit status that a supervisor sent at its end; one that sent none was killed."""
    with channel:
        word = channel.recv(16)
    return int(word) if word else -signal.SIGKILL
