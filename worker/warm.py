"""A process that has the engine loaded and runs nothing itself: it forks a supervisor for each stage.

    python -m worker.warm DESCRIPTOR MODULE

`worker.starting` starts it and speaks to it over the socket DESCRIPTOR; when that closes, it ends. It never computes
and never touches a device, so that it has no thread of torch's and no CUDA context, which no fork survives. (numpy's
BLAS has threads, and takes them down and up again around a fork by itself.)

A forked stage is what an executed one is: its supervisor leads a session of its own, is the subreaper of all that the
stage starts, and bears the stage's mark; its program dies with its supervisor, bears its mark too, and has the command
line, folder, standard streams and exit status that it would have as a program of its own. It becomes one where its
fork cannot serve.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import select
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

from allo_engine.forks import fork
from allo_engine.orphans import die_with
from allo_engine.source import code_version
from worker import supervisor
from worker.procfs import ROOM, has_room, show_command, show_marks
from worker.sweep import STAGE_MARK


def main(descriptor: int, name: str) -> None:
    """Load the engine, say so, and fork until the owner is gone."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    if not has_room():
        raise RuntimeError("there is no room for the marks of forked stages")
    del os.environ[ROOM]
    show_command([sys.executable, "-m", "worker.warm"])
    module = _load(name)
    gc.collect()
    gc.freeze()  # what is loaded stays for ever: no collection writes to its pages, which all stages share
    with suppress(ConnectionError):  # its owner ended, without having heard what it said last
        connection.send(code_version().encode())
        _serve(connection, module)


def _load(name: str) -> ModuleType:
    """Import what `python -m NAME` would run, and what its stages need."""
    spec = importlib.util.find_spec(name)
    module = importlib.import_module(f"{name}.__main__" if spec and spec.submodule_search_locations else name)
    module.preload()
    return module


def _serve(connection: socket.socket, module: ModuleType) -> None:
    """Fork a supervisor for each request, and take leave of those that have ended."""
    owner, children = connection.fileno(), dict[int, int]()
    while True:
        readable, _, _ = select.select([owner, *children], [], [])
        for pidfd in children.keys() & set(readable):
            os.waitpid(children.pop(pidfd), 0)
            os.close(pidfd)
        if owner in readable:
            message, descriptors, _, _ = socket.recv_fds(connection, 2**16, 5)
            if not message:
                return
            stage = _Stage(json.loads(message), descriptors, module)
            pid = fork(partial(stage.supervise, [owner, *children]))
            children[os.pidfd_open(pid)] = pid
            for descriptor in descriptors:
                os.close(descriptor)


class _Stage:
    """One stage's supervisor and program, each in its own fork."""

    def __init__(self, request: Mapping[str, Any], descriptors: Sequence[int], module: ModuleType) -> None:
        self._marks = {STAGE_MARK: request["stage_id"]}
        self._folder, self._options = request["folder"], request["options"]
        self._program, self._arguments = request["program"], request["arguments"]
        self._environment = request["environment"]
        *self._standard, self._lock, self._channel = descriptors
        self._module = module

    def supervise(self, foreign: Sequence[int]) -> int:
        """Be the supervisor, once the owner has our pidfd and tells us to go on; `foreign` belongs to our parent."""
        os.setsid()
        for descriptor in foreign:
            os.close(descriptor)
        for number, descriptor in enumerate(self._standard):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(self._folder)
        os.environ.update(self._environment)  # its devices: CUDA reads which when it is first asked for one
        argv = [*self._options, "--", *self._program, *self._arguments]
        self._present(self._marks, [sys.executable, supervisor.__file__, *argv])
        with socket.socket(fileno=self._channel) as channel:
            socket.send_fds(channel, [b"\0"], [os.pidfd_open(os.getpid())])
            if not channel.recv(2):
                return 1
            status = supervisor.main(argv, start=self._start_program)
            channel.send(str(status).encode())
        return status

    def _start_program(self, command: list[str], marks: Mapping[str, str]) -> int:
        parent = os.getpid()
        return fork(partial(self._run_program, parent, command, marks))

    def _run_program(self, parent: int, command: list[str], marks: Mapping[str, str]) -> int:
        die_with(parent)
        os.close(self._lock)
        os.close(self._channel)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - what is wanted is the descriptor
            os.dup2(nothing.fileno(), 0)
        self._present({**self._marks, **marks}, command)
        sys.argv = [str(self._module.__file__), *self._arguments]
        if not self._module.forked_well():
            os.execv(command[0], command)  # noqa: S606 - our own argv
        return int(self._module.main(self._arguments))

    def _present(self, marks: Mapping[str, str], command: Sequence[str]) -> None:
        """Be known by these marks, here and in whatever is executed from here, and by this command line."""
        os.environ.update(marks)
        show_marks(marks)
        show_command(command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
