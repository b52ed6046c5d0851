"""What training files are to models: asked of the engine in a process of its own, one at a time, and kept in memory."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from service.children import alone, last_words
from service.db import Database
from service.jobs import repository
from service.jobs.errors import InvalidRequest, NotFound, TooMany
from service.jobs.submission import usable_file
from service.jobs.tables import Model
from service.storage.store import Store

log = logging.getLogger(__name__)

Insight = dict[str, Any]
"""{tokens, preview, overlap} (see the engine's data/insight.py), or {refused}."""

KEPT, WAITING = 256, 8
"""Insights that are kept, and that may wait to be made."""


@dataclass(frozen=True)
class Question:
    """What an insight is of: lines, files of a model, and lines to compare with, each by its content.

    The owner is part of it: nobody learns from how soon an answer comes that another has the same file.
    """

    owner: str
    data: str
    model: tuple[tuple[str, str], ...]
    validation: str | None


def question(database: Database, owner: str, file_id: str, model: str, validation_id: str | None) -> Question:
    """What is asked, of files and a model that the owner has. Raises NotFound, InvalidRequest."""
    with database.snapshot() as session:
        file = usable_file(session, owner, file_id, "file_id", database.now())
        found = repository.model(session, owner, model)
        if found is None:
            raise NotFound(f"The model {model!r} does not exist.", "model", "model_not_found")
        validation = None
        if validation_id is not None:
            other = usable_file(session, owner, validation_id, "validation_file", database.now())
            validation = other.lines[0]
        return Question(owner, file.lines[0], _tokenizer(found), validation)


def _tokenizer(model: Model) -> tuple[tuple[str, str], ...]:
    """The model's files but for its weights."""
    return tuple((file["path"], file["sha256"]) for file in model.files if not file["path"].endswith(".safetensors"))


class Insights:
    """Makes insights in the background of this process, in the order in which they are asked for."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self._store, self._scratch = store, scratch
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        self._lock = threading.Lock()
        self._found: OrderedDict[Question, Insight] = OrderedDict()
        self._asked: set[Question] = set()
        self._queue: Queue[Question] = Queue(WAITING)
        self._thread: threading.Thread | None = None

    def of(self, asked: Question) -> Insight | None:
        """The insight, or None while it is being made. Raises TooMany, and InvalidRequest where there can be none: who
        asks again has it tried again."""
        with self._lock:
            found = self._found.get(asked)
            if found is None:
                self._ask(asked)
                return None
            if "refused" in found:
                raise InvalidRequest(self._found.pop(asked)["refused"], "model", "no_insight")
            self._found.move_to_end(asked)
            return found

    def _ask(self, asked: Question) -> None:
        if asked in self._asked:
            return
        try:
            self._queue.put_nowait(asked)
        except Full:
            raise TooMany("Many insights are being made: ask again in a while.") from None
        self._asked.add(asked)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            asked = self._queue.get()
            try:
                found = self._made(asked)
            except Exception:
                log.exception("no insight")
                found = {"refused": "The file could not be looked into: the service's log says why."}
            with self._lock:
                self._asked.discard(asked)
                self._found[asked] = found
                while len(self._found) > KEPT:
                    self._found.popitem(last=False)

    def _made(self, asked: Question) -> Insight:
        self._scratch.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._scratch) as name:
            folder = Path(name)
            files = [("data.jsonl", asked.data), *((f"model/{path}", sha256) for path, sha256 in asked.model)]
            if asked.validation is not None:
                files.append(("validation.jsonl", asked.validation))
            for path, sha256 in files:
                self._store.fetch(sha256, folder / path)
            return _asked_of_the_engine(folder, asked.validation is not None)


def _asked_of_the_engine(folder: Path, compares: bool) -> Insight:
    paths = ("model", "data.jsonl", *(("validation.jsonl",) if compares else ()))
    command = [sys.executable, "-m", "allo_engine.data", *(str(folder / path) for path in paths)]
    pipe = subprocess.PIPE  # its input stays open as long as this process lives, and it ends with that
    with (
        TemporaryFile() as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=alone(**_ONE_THREAD)) as child,
    ):
        assert child.stdout is not None
        said = child.stdout.read()
        if child.wait() == 0:
            found: Insight = json.loads(said.splitlines()[-1])
            return found
        errors.seek(0)
        last = last_words(errors.read().decode(errors="replace"), "it took too much time or memory")
        return {"refused": f"The file could not be looked into: {last:.300}"}


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
