"""Questions to models that share a base, answered in turns.

Each turn goes to one question for a moment: its model is put over the base, and its responses get their next tokens. So
several models answer side by side, and nobody waits until another's long answer has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allo_engine.answering.texts import Text
from allo_engine.checkpoints.folder import context_length
from allo_engine.checkpoints.overlay import Overlay
from allo_engine.data.messages import Message
from allo_engine.data.prompts import Encoder
from allo_engine.model.loading import dtype_of, load_model
from allo_engine.model.rows import is_out_of_memory
from allo_engine.report import StageError
from allo_engine.sampling.batch import Row
from allo_engine.sampling.probe import token_bytes_in_place
from allo_engine.sampling.requests import Request, Settings
from allo_engine.sampling.streaming import Stream

TURN_SECONDS = 0.2
"""A turn at least: short for somebody who reads."""

SHARE = 8
"""So many times as long as it took to put the model over the base."""

Said = dict[str, Any]
"""A line of an answer: {id, type, …}; see __main__.py."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model: `delta` is the folder of its sparse checkpoint, None where it is the base itself.
    Either `messages` or a `prompt`, which is taken as it is. `max_tokens` None: as many as have room, at most `most`.
    """

    id: str
    delta: str | None
    messages: list[Message] | None
    prompt: str | None
    max_tokens: int | None
    most: int
    temperature: float
    top_p: float
    n: int
    seed: int
    stop: list[str]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Question:
        return cls(**{name: line[name] for name in cls.__dataclass_fields__})


class Answer:
    """A question under way."""

    def __init__(self, question: Question, stream: Stream, encoder: Encoder) -> None:
        self.id, self.delta = question.id, None if question.delta is None else Path(question.delta)
        self._stream, self._ends = stream, encoder.ends
        self._texts = [Text(encoder.decode, question.stop) for _ in range(question.n)]
        self._each = bool(question.stop)

    @property
    def ended(self) -> bool:
        return self._stream.ended

    def turn(self, seconds: float) -> Iterator[Said]:
        """Go on for so long; what is new."""
        until, over = time.monotonic() + seconds, False
        while not over:
            rows = self._stream.step()
            over = self._stream.ended or time.monotonic() >= until
            for row in rows:
                if over or self._each or self._reason(row):
                    yield from self._new(row)
        if self.ended:
            yield {"id": self.id, "type": "done"}

    def _new(self, row: Row) -> Iterator[Said]:
        reason, text = self._reason(row), self._texts[row.sample]
        ids = row.ids[:-1] if reason == "stop" else row.ids
        new = text.grown(ids, ended=reason is not None)
        row.cut = text.stopped
        if new:
            yield {"id": self.id, "type": "text", "sample": row.sample, "text": new}
        if reason or text.stopped:
            reason = "stop" if text.stopped else reason
            yield {"id": self.id, "type": "end", "sample": row.sample, "reason": reason, "tokens": len(row.ids)}

    def _reason(self, row: Row) -> str | None:
        """Why a response has ended by itself."""
        if row.ids and row.ids[-1] in self._ends:
            return "stop"
        return "length" if len(row.ids) == row.request.max_tokens else None


class Answerer:
    """The models that share the base in a folder."""

    def __init__(self, base: Path) -> None:
        self._encoder, self._context = Encoder.of(base), context_length(base)
        self._model = load_model(base, dtype_of("auto"))
        self._overlay = Overlay(self._model, base)
        self._in_place = token_bytes_in_place(self._model) > 0
        self._under_way: dict[str, Answer] = {}

    @property
    def idle(self) -> bool:
        return not self._under_way

    def ask(self, question: Question) -> Iterator[Said]:
        """Begin to answer; how long the question is, or why there is no answer."""
        try:
            prompt = self._prompt(question)
            if not prompt:
                raise StageError("empty_prompt", "The prompt is empty: say something.")
            request = Request(0, prompt, question.seed, self._room(question, len(prompt)), range(question.n))
            settings = Settings(self._encoder.ends, question.temperature, question.top_p, question.n)
            self._overlay.show(None if question.delta is None else Path(question.delta))
            stream = Stream(self._model, request, settings, self._in_place)
        except (StageError, RuntimeError, MemoryError) as error:
            yield _failed(question.id, error)
            return
        self._under_way[question.id] = Answer(question, stream, self._encoder)
        yield {"id": question.id, "type": "began", "prompt_tokens": len(prompt)}

    def forget(self, name: str) -> None:
        """Nobody waits for this answer any more."""
        self._under_way.pop(name, None)

    def turns(self) -> Iterator[Said]:
        """A turn for each question under way."""
        for answer in list(self._under_way.values()):
            try:
                began = time.monotonic()
                self._overlay.show(answer.delta)
                yield from answer.turn(max(TURN_SECONDS, SHARE * (time.monotonic() - began)))
            except (StageError, RuntimeError, MemoryError) as error:
                yield _failed(answer.id, error)
                self.forget(answer.id)
            if answer.ended:
                self.forget(answer.id)

    def _prompt(self, question: Question) -> list[int]:
        if question.prompt is not None:
            return self._encoder.text(question.prompt, begin=True)
        messages = question.messages or []
        if not self._encoder.tokenizer.chat_template and [one["role"] for one in messages] == ["user"]:
            return self._encoder.prompt(messages[0]["content"])  # as jobs ask a model that has none
        return self._encoder.prompt(messages)

    def _room(self, question: Question, prompt: int) -> int:
        """How many tokens a response may have. Raises StageError where they have no room behind the prompt."""
        left, wanted = self._context - prompt, question.max_tokens
        if left < (wanted or 1):
            asked = f" and {wanted} of the answer" if wanted else ""
            raise StageError(
                "context_length_exceeded",
                f"The model reads {self._context} tokens; these are {prompt} of the prompt{asked}: shorten it, or ask "
                "for fewer.",
            )
        return wanted or min(left, question.most)


def _failed(name: str, error: Exception) -> Said:
    if isinstance(error, StageError):
        return {"id": name, "type": "error", "code": error.code, "message": error.message}
    if is_out_of_memory(error):
        message = "The worker's memory is full with this question: ask for fewer tokens or fewer answers at once."
        return {"id": name, "type": "error", "code": "out_of_memory", "message": message}
    raise error
