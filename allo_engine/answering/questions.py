"""Questions to models that share a base: how one is read, and what is told of its answer as that grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from allo_engine.answering.texts import Text
from allo_engine.checkpoints.folder import context_length
from allo_engine.data.messages import Message
from allo_engine.data.prompts import Encoder
from allo_engine.model.rows import is_out_of_memory
from allo_engine.report import StageError
from allo_engine.sampling.requests import Request

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

    @property
    def over(self) -> Path | None:
        """The folder of its sparse checkpoint."""
        return None if self.delta is None else Path(self.delta)


class Answerer(Protocol):
    """The models that share a base, whoever decodes."""

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""

    def ask(self, question: Question) -> Iterator[Said]:
        """Take a question; what is to be told of it at once."""

    def forget(self, name: str) -> None:
        """Nobody waits for this answer any more."""

    def turns(self) -> Iterator[Said]:
        """Go on with all of them for a moment; what is new."""


class Reader:
    """Reads questions as the models of a base do, which take `context` tokens at most, prompt and answer together."""

    def __init__(self, base: Path) -> None:
        self.encoder, self.context = Encoder.of(base), context_length(base)

    def request(self, question: Question) -> Request:
        """Raises StageError where it is empty or too long, or where the model has no way to read it."""
        prompt = self._prompt(question)
        if not prompt:
            raise StageError("empty_prompt", "The prompt is empty: say something.")
        return Request(0, prompt, question.seed, self._room(question, len(prompt)), range(question.n))

    def _prompt(self, question: Question) -> list[int]:
        if question.prompt is not None:
            return self.encoder.text(question.prompt, begin=True)
        messages = question.messages or []
        if not self.encoder.tokenizer.chat_template and [one["role"] for one in messages] == ["user"]:
            return self.encoder.prompt(messages[0]["content"])  # as jobs ask a model that has none
        return self.encoder.prompt(messages)

    def _room(self, question: Question, prompt: int) -> int:
        """How many tokens a response may have. Raises StageError where they have no room behind the prompt."""
        left, wanted = self.context - prompt, question.max_tokens
        if left < (wanted or 1):
            asked = f" and {wanted} of the answer" if wanted else ""
            raise StageError(
                "context_length_exceeded",
                f"The model reads {self.context} tokens; these are {prompt} of the prompt{asked}: shorten it, or ask "
                "for fewer.",
            )
        return wanted or min(left, question.most)


class Telling:
    """What is told of a question's answers, `request.samples` of them, as they grow."""

    def __init__(self, question: Question, request: Request, encoder: Encoder) -> None:
        self.id, self.each = question.id, bool(question.stop)
        self._most, self._ends = request.max_tokens, encoder.ends
        self._texts = [Text(encoder.decode, question.stop) for _ in request.samples]
        self._open = set(request.samples)

    @property
    def over(self) -> bool:
        """Whether all of them have been told to their end."""
        return not self._open

    def has_ended(self, sample: int) -> bool:
        """Whether an answer has been told to its end; what follows is not wanted."""
        return sample not in self._open

    def more(self, sample: int, ids: Sequence[int]) -> Iterator[Said]:
        """What is new of an answer that has these ids by now."""
        reason, text = self.reason(ids), self._texts[sample]
        new = text.grown(list(ids[:-1] if reason == "stop" else ids), ended=reason is not None)
        if new:
            yield {"id": self.id, "type": "text", "sample": sample, "text": new}
        if reason or text.stopped:
            self._open.discard(sample)
            reason = "stop" if text.stopped else reason
            yield {"id": self.id, "type": "end", "sample": sample, "reason": reason, "tokens": len(ids)}

    def reason(self, ids: Sequence[int]) -> str | None:
        """Why an answer has ended by itself."""
        if ids and ids[-1] in self._ends:
            return "stop"
        return "length" if len(ids) == self._most else None


def began(name: str, request: Request) -> Said:
    """That the prompt is read."""
    return {"id": name, "type": "began", "prompt_tokens": len(request.prompt)}


def failed(name: str, error: Exception) -> Said:
    """Why there is no answer, or no more of it. Raises what is no fault of the question."""
    if isinstance(error, StageError):
        return {"id": name, "type": "error", "code": error.code, "message": error.message}
    if is_out_of_memory(error):
        message = "The worker's memory is full with this question: ask for fewer tokens or fewer answers at once."
        return {"id": name, "type": "error", "code": "out_of_memory", "message": message}
    raise error
