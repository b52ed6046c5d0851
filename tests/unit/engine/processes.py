"""Real processes that need not load the engine first: ranks of one another, as the launcher would join them, and the
engine's own program.

They are forked from a server that has imported what they need and computed nothing: torch survives no fork of a process
that has. Workers have their stages forked in the same way.
"""

from __future__ import annotations

import fcntl
import io
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from allo_engine.launching import Place, joined
from allo_engine.report import Report
from tests.waiting import PATIENCE

PAGE = 4096  # bytes: the smallest a pipe can be

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.unit.engine.at_rest"])


def as_ranks(
    size: int, folder: Path, work: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None
) -> list[Any]:
    """What `work(*arguments)` gives on each of `size` ranks; they meet in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [_server.Pipe(duplex=False) for _ in range(size)]
    places = [Place(rank, size, folder / "meeting") for rank in range(size)]
    processes = [
        _server.Process(target=_rank, args=(place, speaker, work, arguments, environment or {}))
        for place, (_, speaker) in zip(places, pairs, strict=True)
    ]
    try:
        for process, (_, speaker) in zip(processes, pairs, strict=True):
            process.start()
            speaker.close()
        heard = [_heard(listener) for listener, _ in pairs]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert all(done for done, _ in heard), "\n".join(found for done, found in heard if not done)
    return [found for _, found in heard]


def _heard(listener: Connection) -> tuple[bool, Any]:
    assert wait([listener], PATIENCE), "a rank hangs"
    done, found = listener.recv()
    return done, found


def _rank(
    place: Place,
    speaker: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        with joined(place, Report(io.StringIO())) if place.size > 1 else nullcontext():
            speaker.send((True, work(*arguments)))
    except BaseException:
        speaker.send((False, traceback.format_exc()))


class Program:
    """`python -m allo_engine` with these arguments, one thread and a file for its errors, to be asked as a Popen is.

    It is never more than a page of lines ahead of who reads them: what is read of step n finds it near step n, however
    long that took. It has one thread, or where it is not `alone` another that does nothing.
    """

    def __init__(self, arguments: Sequence[str], errors: Path, alone: bool = True) -> None:
        listener, speaker = _server.Pipe(duplex=False)
        fcntl.fcntl(speaker, fcntl.F_SETPIPE_SZ, PAGE)
        self._errors = errors
        self._process = _server.Process(target=_program, args=(arguments, speaker, errors, alone))
        self._process.start()
        speaker.close()
        self.stdout = os.fdopen(os.dup(listener.fileno()))
        listener.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status once it has ended; −n where signal n ended it."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """The rest of what it says, and its errors, once it has ended; after so many seconds it is killed."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        with self.stdout:
            said = self.stdout.read()
        self._process.join()
        late.cancel()
        return said, self._errors.read_text()


def _program(arguments: Sequence[str], speaker: Connection, errors: Path, alone: bool) -> None:
    import torch

    from allo_engine.__main__ import main
    from allo_engine.forks import leave

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    os.dup2(speaker.fileno(), 1)
    speaker.close()
    with errors.open("w") as file:
        os.dup2(file.fileno(), 2)
    if not alone:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    leave(main(arguments))
