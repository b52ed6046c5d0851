"""What training files are to models: asked of the engine in a process of its own, one at a time, and kept in memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.children import ChildFailed, told
from service.db import Database
from service.jobs.errors import InvalidRequest
from service.jobs.forecast.errands import Errands, Scratch
from service.jobs.registry.models import found_model
from service.jobs.submission import usable_file
from service.jobs.tables import Model

Insight = dict[str, Any]
"""{tokens, preview, overlap} (see the engine's data/insight.py)."""

SECONDS, MEMORY = 600.0, 4 * 2**30
"""What the engine may take for one; it bounds its own CPU time more narrowly."""


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
        found = found_model(session, owner, model)
        validation = None
        if validation_id is not None:
            other = usable_file(session, owner, validation_id, "validation_file", database.now())
            validation = other.lines[0]
        return Question(owner, file.lines[0], tokenizer_of(found), validation)


def tokenizer_of(model: Model) -> tuple[tuple[str, str], ...]:
    """The model's files but for its weights."""
    return tuple((file["path"], file["sha256"]) for file in model.files if not file["path"].endswith(".safetensors"))


class Insights:
    """Makes insights in the background of this process."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._errands: Errands[Question, Insight] = Errands(self._made)

    def of(self, asked: Question) -> Insight | None:
        """The insight, or None while it is being made. Raises TooMany, and InvalidRequest where there can be none: who
        asks again has it tried again."""
        found = self._errands.ask(asked)
        return found.result() if found.done() else None

    def _made(self, asked: Question) -> Insight:
        files = [("data.jsonl", asked.data), *((f"model/{path}", sha256) for path, sha256 in asked.model)]
        if asked.validation is not None:
            files.append(("validation.jsonl", asked.validation))
        with self._scratch.holding(files) as folder:
            return _asked_of_the_engine(folder, asked.validation is not None)


def _asked_of_the_engine(folder: Path, compares: bool) -> Insight:
    paths = ("model", "data.jsonl", *(("validation.jsonl",) if compares else ()))
    command = [sys.executable, "-m", "allo_engine.data", *(str(folder / path) for path in paths)]
    try:
        found: Insight = told(command, SECONDS, MEMORY)
    except ChildFailed as failed:
        found = {"refused": f"The file could not be looked into: {failed.words:.300}"}
    if "refused" in found:
        raise InvalidRequest(found["refused"], "model", "no_insight")
    return found
