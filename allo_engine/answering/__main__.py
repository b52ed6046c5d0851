"""Answer questions to models that share a base, without any service: python -m allo_engine.answering BASE [BACKEND]

BASE is the folder of a model. BACKEND decodes: "transformers" (the engine's own), "vllm", or "auto": vLLM where it is
installed, the device is a GPU and it can serve this model. A line of standard input is a question, as JSON with the
fields of `Question`, or {"forget": ID} where nobody waits for an answer any more; at its end this process ends, in the
middle of a word if need be. On standard output, a JSON object a line:

    {"type": "ready", "backend": "vllm"}                             the base is in memory
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
import select
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from allo_engine.importing import loading

with loading():
    from allo_engine.answering.own import OwnAnswerer
    from allo_engine.answering.questions import Answerer, Question
    from allo_engine.bases import Backend
    from allo_engine.report import StageError
    from allo_engine.sampling import chosen

Line = Mapping[str, Any]


def main(base: Path, backend: Backend) -> None:
    """Serve until nobody asks any more."""
    threading.Thread(target=_end_with_whoever_asks, daemon=True).start()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    try:
        decoded_by = chosen(backend)
        answerer = _by_vllm(base, backend, stream) if decoded_by == "vllm" else OwnAnswerer(base)
    except (StageError, OSError, ValueError, RuntimeError) as error:
        _say(stream, [{"type": "failed", "message": str(error)}])
        return
    _say(stream, [{"type": "ready", "backend": decoded_by}])
    _serve(answerer, stream)


def _by_vllm(base: Path, backend: Backend, stream: TextIO) -> Answerer:
    """Where the choice is ours, this process begins anew without vLLM if that cannot serve: nothing is left of it."""
    try:
        from allo_engine.answering.by_vllm import VllmAnswerer

        return VllmAnswerer(base)
    except Exception as error:  # whatever it has against the model, the device or its memory
        if backend == "vllm":
            raise StageError("not_served", f"vLLM cannot serve this model here: {error}") from error
        traceback.print_exc()
        os.dup2(stream.fileno(), 1)
        command = [sys.executable, "-m", "allo_engine.answering", str(base), "transformers"]
        os.execv(sys.executable, command)  # noqa: S606  # ourselves


def _serve(answerer: Answerer, stream: TextIO) -> None:
    asked: SimpleQueue[Line] = SimpleQueue()
    threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    while True:
        for line in _new(asked, wait=answerer.idle):
            if "forget" in line:
                answerer.forget(line["forget"])
            else:
                _say(stream, answerer.ask(Question.of(line)))
        _say(stream, answerer.turns())


def _end_with_whoever_asks() -> None:
    """Once they are gone nobody hears the rest. Their questions are left unread: another program may begin here."""
    hung_up = select.poll()
    hung_up.register(0, 0)
    hung_up.poll()
    os._exit(0)


def _listen(asked: SimpleQueue[Line]) -> None:
    for line in sys.stdin:
        asked.put(json.loads(line))
    os._exit(0)


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
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "auto")  # type: ignore[arg-type]
