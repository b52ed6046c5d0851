"""Responses that outlive the run that drew them: each is kept as it ends, and a resumed run asks for the rest.

What a model was asked before, by whichever stage on the machine, it need not be asked again (see known.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from allo_engine.checked import checked, whole
from allo_engine.ranks import here
from allo_engine.report import Report, Stopped, Tick
from allo_engine.sampling.known import Kept, Known
from allo_engine.sampling.requests import Request, Response, Sampler, Settings

Opened = Callable[[], AbstractContextManager[Sampler]]
"""Loads a model that answers, where there is something to ask it."""


def answers(
    requests: Sequence[Request],
    settings: Settings,
    opened: Opened,
    kept: Path,
    report: Report,
    tick: Tick,
    known: Known | None = None,
) -> dict[int, list[Response]]:
    """Each request's responses, by its number. `kept` is this rank's file of what it has drawn, in its work folder.

    Ranks share what no earlier run has drawn, whatever ranks that had. Raises Stopped, with all that has ended kept.
    """
    found = _read(kept, report) if here().leads else {}
    if known and here().leads:
        found |= known.read(_left(requests, found))
    if here().leads:
        tick(len(found))
    done = here().firsts(found)
    own = here().share(_left(requests, done), lambda request: len(request.samples))
    for part in here().gathered(_drawn(own, settings, opened, kept, report, tick)):
        done |= part
    if known and here().leads:
        known.write(requests, done)
    return {request.number: [done[request.number, sample] for sample in request.samples] for request in requests}


def _left(requests: Sequence[Request], done: Container[tuple[int, int]]) -> list[Request]:
    return [left for request in requests if (left := _without(request, done)).samples]


def _drawn(
    requests: Sequence[Request], settings: Settings, opened: Opened, kept: Path, report: Report, tick: Tick
) -> Kept:
    """This rank's responses."""
    found: Kept = {}
    count = sum(len(request.samples) for request in requests)
    if count:
        with _appending(kept) as stream, opened() as sampler:
            for number, sample, response in sampler.sample(requests, settings):
                found[number, sample] = response
                stream.write(checked({"number": number, "sample": sample, "response": response}) + "\n")
                stream.flush()
                tick(1)
                if report.stop_requested and len(found) < count:
                    raise Stopped
    return found


def _without(request: Request, done: Container[tuple[int, int]]) -> Request:
    return replace(request, samples=[sample for sample in request.samples if (request.number, sample) not in done])


def _read(kept: Path, report: Report) -> Kept:
    """What an earlier run has drawn, each of its ranks in a folder of its own; what has rotted is drawn anew."""
    files = [kept, *sorted(kept.parent.glob(f"ranks/*/{kept.name}"))]
    read = [whole(line) for path in files if path.exists() for line in _ended(path.read_bytes()).split(b"\n")[:-1]]
    lines = [line for line in read if line is not None]
    if rotten := len(read) - len(lines):
        report.message(f"{rotten} kept responses are damaged and are drawn anew.", "warn", {"damaged": rotten})
    return {(line["number"], line["sample"]): Response(*line["response"]) for line in lines}


def _ended(kept: bytes) -> bytes:
    """Without its last line, where a killed run left that in the middle."""
    return kept[: kept.rfind(b"\n") + 1]


def _appending(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        os.truncate(path, len(_ended(path.read_bytes())))
    return path.open("a")
