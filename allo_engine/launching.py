"""A stage as several processes: the stage's own process is rank 0 and starts the others, which end with it.

Each rank runs the stage's own command line, on its own device or, on a CPU, with its share of the threads, and in a
work folder of its own below the stage's. Rank 0 alone is heard. A rank that dies takes the stage with it: what it
computed is in the last checkpoint, and another attempt goes on from there.

A rank notices the death of another at once, by its broken connections, and rank 0 that of a child; so the wait for one
another has no limit that a long row could reach.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from allo_engine.bases import PromptConfig, StageConfig
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
def launched(
    config: StageConfig, place: Place | None, command: Sequence[str], work: Path, report: Report
) -> Iterator[None]:
    """The stage's ranks, all of them, around what each runs, which ends with an exchange. `place` None: this is the
    first, and starts the others; they meet in the work folder, which goes with the stage however that ends.
    """
    if place:
        die_with(place.parent)
        with joined(place, report):
            yield
        return
    size = count_of(config.devices) if isinstance(config, PromptConfig) else 1
    if size == 1:
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="meeting-", dir=work) as folder:
        meeting = Path(folder) / "meeting"
        others = Others(command, size, meeting, report)
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


class Others:
    """The ranks behind the first: started, listened to, and gone when this process is."""

    def __init__(self, command: Sequence[str], size: int, meeting: Path, report: Report) -> None:
        self._report, self._let_go = report, False
        self.said: list[tuple[str, str]] = []
        """Errors' codes and messages, of ranks that ended by one."""
        self._processes = [
            subprocess.Popen(
                [*command, *Place(rank, size, meeting, os.getpid()).options()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(1, size)
        ]
        self._listeners = [threading.Thread(target=self._listen, args=[one], daemon=True) for one in self._processes]
        for listener in self._listeners:
            listener.start()

        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: Any) -> None:
        """All were asked to stop where one was."""
        self._report.stop_requested = True
        for process in self._processes:
            process.terminate()

    def let_go(self) -> None:
        """This process is about to end, and says itself why: what becomes of the others is of no interest."""
        self._let_go = True

    def wait(self, seconds: float | None = None) -> None:
        """Until all have ended, or each for so long."""
        for listener in self._listeners:
            listener.join(seconds)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Hear of a rank what ended it; where that is no good end, this process ends too, whatever it waits for."""
        assert process.stdout is not None
        last: dict[str, Any] = {}
        for line in process.stdout:
            with suppress(ValueError):  # not ours: NCCL, for one, prints its version
                last = json.loads(line)
        status = process.wait()
        if last.get("type") == "error":
            self.said.append((last["code"], last["message"]))
        if status not in (_DONE, _STOPPED) and not self._let_go:
            with suppress(OSError):
                for code, message in self.said[:1]:
                    self._report.error(code, message)
                sys.stderr.write(f"One of the stage's processes ended with status {status}.\n")
            os._exit(1)
