"""Answers by the engine's own decoding, in turns.

Each turn goes to one question for a moment: its model is put over the base, and its responses get their next tokens. So
several models answer side by side, and nobody waits until another's long answer has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from allo_engine.answering.questions import Question, Reader, Said, Telling, began, failed
from allo_engine.checkpoints.overlay import Overlay, in_model
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.report import StageError
from allo_engine.sampling.probe import token_bytes_in_place
from allo_engine.sampling.requests import Settings
from allo_engine.sampling.streaming import Stream

TURN_SECONDS = 0.2
"""A turn at least: short for somebody who reads."""

SHARE = 8
"""So many times as long as it took to put the model over the base."""


class Answer:
    """A question under way."""

    def __init__(self, question: Question, stream: Stream, telling: Telling) -> None:
        self.id, self.delta = question.id, question.over
        self._stream, self._telling = stream, telling

    @property
    def ended(self) -> bool:
        return self._stream.ended

    def turn(self, seconds: float) -> Iterator[Said]:
        """Go on for so long; what is new."""
        until, over, telling = time.monotonic() + seconds, False, self._telling
        while not over:
            rows = self._stream.step()
            over = self._stream.ended or time.monotonic() >= until
            for row in rows:
                if over or telling.each or telling.reason(row.ids):
                    yield from telling.more(row.sample, row.ids)
                    row.cut = telling.has_ended(row.sample)
        if self.ended:
            yield {"id": self.id, "type": "done"}


class OwnAnswerer:
    """The models that share the base in a folder."""

    def __init__(self, base: Path) -> None:
        self._reader, self._model = Reader(base), load_model(base, dtype_of("auto"))
        self._overlay = Overlay(in_model(self._model, base), base)
        self._in_place = token_bytes_in_place(self._model) > 0
        self._under_way: dict[str, Answer] = {}

    @property
    def idle(self) -> bool:
        return not self._under_way

    def ask(self, question: Question) -> Iterator[Said]:
        """Begin to answer; how long the question is, or why there is no answer."""
        encoder = self._reader.encoder
        try:
            request = self._reader.request(question)
            settings = Settings(encoder.ends, question.temperature, question.top_p, question.n)
            self._overlay.show(question.over)
            stream = Stream(self._model, request, settings, self._in_place)
        except (StageError, RuntimeError, MemoryError) as error:
            yield failed(question.id, error)
            return
        self._under_way[question.id] = Answer(question, stream, Telling(question, request, encoder))
        yield began(question.id, request)

    def forget(self, name: str) -> None:
        self._under_way.pop(name, None)

    def turns(self) -> Iterator[Said]:
        """A turn for each question under way."""
        for answer in list(self._under_way.values()):
            try:
                start = time.monotonic()
                self._overlay.show(answer.delta)
                yield from answer.turn(max(TURN_SECONDS, SHARE * (time.monotonic() - start)))
            except (StageError, RuntimeError, MemoryError) as error:
                yield failed(answer.id, error)
                self.forget(answer.id)
            if answer.ended:
                self.forget(answer.id)
