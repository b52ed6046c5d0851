"""A stage as several processes: the stage's own process is rank 0 and starts the others, which end with it.

Each rank runs the stage's own command line, on its own device or, on a CPU, with its share of the threads, and in a
work folder of its own below the stage's. It is forked from rank 0, which has the engine loaded, and becomes a program
of its own where its fork cannot serve. Rank 0 alone is heard. A rank that dies takes the stage with it: what it
computed is in the last checkpoint, and another attempt goes on from there.

A rank notices the death of another at once, by its broken connections, and rank 0 that of a child; so the wait for one
another has no limit that a long row could reach.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from allo_engine.bases import PromptConfig, StageConfig
from allo_engine.forks import fork
from allo_engine.orphans import die_with
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped

_PATIENCE = timedelta(days=7)
_LAST_WORDS = 20.0
_DONE, _STOPPED = 0, 75


@dataclass(frozen=True)
class Place:
    """Which rank of how many this process is, the file by which they find one another, and who started it, if it is
    not the first."""

    rank: int
    size: int
    meeting: Path
    parent: int = 0

    def options(self) -> list[str]:
        """For the command line of `python -m allo_engine`."""
        return [f"--{name}={value}" for name, value in vars(self).items()]


Become = Callable[[Place, bool], int]
"""Runs, in a fork of the first rank, the rank of this place, told whether the first had no other thread: a fork loses
those, and whatever they held. The exit status."""


def count_of(devices: int | str) -> int:
    """How many processes a stage's `devices` are: one a device; on a CPU as many as it names."""
    import torch

    found = torch.cuda.device_count()
    if devices == "auto":
        return max(1, found)
    if found and int(devices) > found:
        raise StageError("bad_config", f"devices is {devices}, and this process sees {found}: set devices to 'auto'.")
    return int(devices)


@contextmanager
def joined(place: Place, report: Report) -> Iterator[None]:
    """This process among its ranks, on its device. Raises Stopped where all were asked to stop and another was faster:
    it took its connections with it.
    """
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(place.rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // place.size))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the ranks of a stage are all on this machine
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{place.meeting}",
        rank=place.rank,
        world_size=place.size,
        timeout=_PATIENCE,
    )
    try:
        yield
        _leave_together(place.size)
    except RuntimeError as error:
        if report.stop_requested:
            raise Stopped from error
        raise
    finally:
        dist.destroy_process_group()


def _leave_together(size: int) -> None:
    """Wait until every rank has all that it was sent: a connection that is closed with something unread in it is reset,
    and takes with it what the other end has not read yet.
    """
    gone = here().tally()
    gone(1)
    while gone(0) < size:
        time.sleep(0.005)


@contextmanager
def launched(config: StageConfig, place: Place | None, become: Become, work: Path, report: Report) -> Iterator[None]:
    """The stage's ranks, all of them, around what each runs, which ends with an exchange. `place` None: this is the
    first, and starts the others; they meet in the work folder, which goes with the stage however that ends.
    """
    if place:
        die_with(place.parent)
        Path("/proc/self/comm").write_text(f"rank {place.rank}")  # a fork has the command line of the first
        with joined(place, report):
            yield
        return
    size = count_of(config.devices) if isinstance(config, PromptConfig) else 1
    if size == 1:
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    with _folder_of_meeting(work) as folder:
        meeting = folder / "meeting"
        others = Others(become, size, meeting, report)
        try:
            with joined(Place(0, size, meeting), report):
                try:
                    yield
                except BaseException:
                    others.let_go()
                    raise
        except RuntimeError as error:  # perhaps that of a broken connection: whose rank it was says why
            others.wait(_LAST_WORDS)
            if others.said:
                raise StageError(*others.said[0]) from error
            raise
        others.wait()


@contextmanager
def _folder_of_meeting(work: Path) -> Iterator[Path]:
    """A folder for as long. It goes with this process alone: what tempfile would have every fork remove at its end."""
    folder = Path(tempfile.mkdtemp(prefix="meeting-", dir=work))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Rank:
    """A rank behind the first, a fork of this process, which hears what it says: `words`, a line each."""

    def __init__(self, run: Callable[[], int]) -> None:
        ours, theirs = os.pipe()
        self._pid = fork(partial(_apart, ours, theirs, run))
        self._pidfd = os.pidfd_open(self._pid)
        os.close(theirs)
        self.words = os.fdopen(ours, encoding="utf-8", errors="replace")

    def terminate(self) -> None:
        """Ask it to stop, if it is still there."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def wait(self) -> int:
        """Its exit status, once it has ended; −n where signal n ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _apart(foreign: int, words: int, run: Callable[[], int]) -> int:
    """Run in a fork with standard streams of its own: it reads nothing, and its words go to whoever listens."""
    os.close(foreign)
    for descriptor, number in ((os.open(os.devnull, os.O_RDONLY), 0), (words, 1)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return run()


class Others:
    """The ranks behind the first: started, listened to, and gone when this process is."""

    def __init__(self, become: Become, size: int, meeting: Path, report: Report) -> None:
        self._report, self._let_go = report, False
        self.said: list[tuple[str, str]] = []
        """Errors' codes and messages, of ranks that ended by one."""
        alone = len([*Path("/proc/self/task").iterdir()]) == 1
        places = [Place(rank, size, meeting, os.getpid()) for rank in range(1, size)]
        self._ranks = [Rank(partial(become, place, alone)) for place in places]
        self._listeners = [threading.Thread(target=self._listen, args=[one], daemon=True) for one in self._ranks]
        for listener in self._listeners:
            listener.start()

        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: Any) -> None:
        """All were asked to stop where one was."""
        self._report.stop_requested = True
        for rank in self._ranks:
            rank.terminate()

    def let_go(self) -> None:
        """This process is about to end, and says itself why: what becomes of the others is of no interest."""
        self._let_go = True

    def wait(self, seconds: float | None = None) -> None:
        """Until all have ended, or each for so long."""
        for listener in self._listeners:
            listener.join(seconds)

    def _listen(self, rank: Rank) -> None:
        """Hear of a rank what ended it; where that is no good end, this process ends too, whatever it waits for."""
        last: dict[str, Any] = {}
        for line in rank.words:
            with suppress(ValueError):  # not ours: NCCL, for one, prints its version
                last = json.loads(line)
        status = rank.wait()
        if last.get("type") == "error":
            self.said.append((last["code"], last["message"]))
        if status not in (_DONE, _STOPPED) and not self._let_go:
            with suppress(OSError):
                for code, message in self.said[:1]:
                    self._report.error(code, message)
                sys.stderr.write(f"One of the stage's processes ended with status {status}.\n")
            os._exit(1)
