"""Answer questions to models that share a base, without any service: python -m allo_engine.answering BASE

BASE is the folder of a model. A line of standard input is a question, as JSON with the fields of `Question`, or
{"forget": ID} where nobody waits for an answer any more; at its end this process ends, in the middle of a word if need
be. On standard output, a JSON object a line:

    {"type": "ready"}                                                the base is in memory
    {"id": ID, "type": "began", "prompt_tokens": 12}                 the prompt is read
    {"id": ID, "type": "text", "sample": 0, "text": " a"}            more of an answer
    {"id": ID, "type": "end", "sample": 0, "reason": "stop", "tokens": 7}    "length" where it was as long as allowed
    {"id": ID, "type": "done"}                                       all of its answers have ended
    {"id": ID, "type": "error", "code": "…", "message": "…"}         there is none, or no more of it
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as in the engine's own __main__

import contextlib
import json
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from allo_engine.answering.own import OwnAnswerer
from allo_engine.answering.questions import Question
from allo_engine.report import StageError

Line = Mapping[str, Any]


def main(base: Path) -> None:
    """Serve until nobody asks any more."""
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    asked: SimpleQueue[Line] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints must not stand among the answers
        try:
            answerer = OwnAnswerer(base)
        except (StageError, OSError, ValueError, RuntimeError) as error:
            _say(stream, [{"type": "failed", "message": str(error)}])
            return
        _say(stream, [{"type": "ready"}])
        while True:
            for line in _new(asked, wait=answerer.idle):
                if "forget" in line:
                    answerer.forget(line["forget"])
                else:
                    _say(stream, answerer.ask(Question.of(line)))
            _say(stream, answerer.turns())


def _listen(asked: SimpleQueue[Line]) -> None:
    for line in sys.stdin:
        asked.put(json.loads(line))
    os._exit(0)  # whoever asks is gone: nobody hears the rest


def _new(asked: SimpleQueue[Line], wait: bool) -> Iterable[Line]:
    """What was asked since; where there is nothing else to do, the next question."""
    with contextlib.suppress(Empty):
        yield asked.get(block=wait)
        while True:
            yield asked.get_nowait()


def _say(stream: TextIO, lines: Iterable[Line]) -> None:
    for line in lines:
        stream.write(json.dumps(line) + "\n")
        stream.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
