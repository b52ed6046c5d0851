"""Answers in OpenAI's shapes: a completion as it grows, in chunks, or whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.jobs.trying import Answer, Piece

Json = dict[str, Any]


class Completion:
    """What was told so far of an answer to a model's name, begun at `created`, `count` times."""

    object: str
    prefix: str

    def __init__(self, answer: Answer, model: str, created: int, count: int) -> None:
        self._head = {"id": f"{self.prefix}-{answer.id.rpartition('-')[2]}", "created": created, "model": model}
        self._prompt = answer.prompt_tokens
        self._texts, self._ends = [""] * count, dict[int, Piece]()

    def add(self, piece: Piece) -> None:
        self._texts[piece.sample] += piece.text
        if piece.reason:
            self._ends[piece.sample] = piece

    def first(self) -> Iterator[Json]:
        """What stands before all pieces."""
        yield from ()

    def chunk(self, piece: Piece) -> Json:
        """More of one answer."""
        raise NotImplementedError

    def last(self) -> Json:
        """What stands behind all pieces, for whoever wants to know what it took."""
        return self._chunk([]) | {"usage": self._usage()}

    def whole(self) -> Json:
        """All answers, at their end."""
        choices = [
            {"index": number, "finish_reason": self._ends[number].reason, "logprobs": None, **self._told(text)}
            for number, text in enumerate(self._texts)
        ]
        return {**self._head, "object": self.object, "choices": choices, "usage": self._usage()}

    def _told(self, text: str) -> Json:
        raise NotImplementedError

    def _chunk(self, choices: list[Json]) -> Json:
        return {**self._head, "object": self.object, "choices": choices}

    def _usage(self) -> Json:
        drawn = sum(piece.tokens for piece in self._ends.values())
        return {"prompt_tokens": self._prompt, "completion_tokens": drawn, "total_tokens": self._prompt + drawn}


class Chat(Completion):
    """Answers to a conversation."""

    object, prefix = "chat.completion", "chatcmpl"

    def first(self) -> Iterator[Json]:
        for number in range(len(self._texts)):
            yield self._more(number, {"role": "assistant", "content": ""}, None)

    def chunk(self, piece: Piece) -> Json:
        return self._more(piece.sample, {"content": piece.text} if piece.text else {}, piece.reason)

    def _more(self, number: int, delta: Json, reason: str | None) -> Json:
        return self._chunk([{"index": number, "delta": delta, "finish_reason": reason, "logprobs": None}])

    def _chunk(self, choices: list[Json]) -> Json:
        return super()._chunk(choices) | {"object": "chat.completion.chunk"}

    def _told(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


class Plain(Completion):
    """How a text goes on."""

    object, prefix = "text_completion", "cmpl"

    def chunk(self, piece: Piece) -> Json:
        return self._chunk(
            [{"index": piece.sample, "text": piece.text, "finish_reason": piece.reason, "logprobs": None}]
        )

    def _told(self, text: str) -> Json:
        return {"text": text}
