"""`python -m service.trackers NAME SECONDS`: a telling a line in, `{id, run}` or `{id, error}` a line out."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TextIO
from urllib.parse import urlsplit

from service.jobs.access.telling import Telling

Tell = Callable[[Telling], str]
"""Tells a tracker, and returns what it calls the job."""


def main() -> None:
    tracker, seconds = sys.argv[1], int(sys.argv[2])
    answers = _own_output()
    signal.signal(signal.SIGALRM, _too_late)
    tell: Tell = import_module(f"service.trackers.to_{tracker}").tell
    for line in sys.stdin:
        telling = Telling.read(line)
        print(json.dumps({"id": telling.id, **_answer(tell, telling, seconds)}), file=answers, flush=True)


def _answer(tell: Tell, telling: Telling, seconds: int) -> dict[str, str]:
    signal.alarm(seconds)
    try:
        return {"run": tell(telling)}
    except Exception as error:  # whatever a library raises, the next job is told
        return {"error": _reason(error, telling.place)}
    finally:
        signal.alarm(0)


def _reason(error: BaseException, place: str | None) -> str:
    """Why, in a line that the job's owner may read: nothing of where the operator has the tracker, nor of its keys."""
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    text = " ".join(str(error).split())
    for word in sorted(_unsaid(place), key=len, reverse=True):
        text = text.replace(word, "…")
    return f"{type(error).__name__}: {text}"[:200]


def _unsaid(place: str | None) -> set[str]:
    """What is the operator's alone: places, their hosts, and keys."""
    ending = ("_KEY", "_TOKEN", "_PASSWORD", "_URI", "_URL")
    words = {value for name, value in os.environ.items() if name.endswith(ending)} | {place or ""}
    parts = [urlsplit(word) for word in words if "://" in word]
    return {
        word for word in (*words, *(part.netloc for part in parts), *(part.hostname or "" for part in parts)) if word
    }


def _too_late(*_: object) -> None:
    raise TimeoutError(0, "it gave no answer in time")


def _own_output() -> TextIO:
    """Our standard output, for us alone: what libraries print goes to the errors."""
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return ours


if __name__ == "__main__":
    main()
