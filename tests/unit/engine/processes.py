"""Work done by several real processes as ranks of one another, as the launcher would join them.

They are forked from a server that has imported what they need and computed nothing: torch survives no fork of a process
that has.
"""

from __future__ import annotations

import io
import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from allo_engine.launching import Place, joined
from allo_engine.report import Report
from tests.waiting import PATIENCE

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__, "torch.distributed", "allo_engine.training.trained", "tests.tiny"])


def as_ranks(size: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` gives on each of `size` ranks; they meet in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [_server.Pipe(duplex=False) for _ in range(size)]
    places = [Place(rank, size, folder / "meeting") for rank in range(size)]
    processes = [
        _server.Process(target=_rank, args=(place, speaker, work, arguments))
        for place, (_, speaker) in zip(places, pairs, strict=True)
    ]
    try:
        for process, (_, speaker) in zip(processes, pairs, strict=True):
            process.start()
            speaker.close()
        return [_heard(listener) for listener, _ in pairs]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _heard(listener: Connection) -> Any:
    assert wait([listener], PATIENCE), "a rank hangs"
    done, found = listener.recv()
    assert done, found
    return found


def _rank(place: Place, speaker: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    try:
        with joined(place, Report(io.StringIO())) if place.size > 1 else nullcontext():
            speaker.send((True, work(*arguments)))
    except BaseException:
        speaker.send((False, traceback.format_exc()))
