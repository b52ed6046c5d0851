"""What a client may ask of a model. OpenAI's names; what is not among them is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from service.api.schemas import PLAIN, Body, ModelName, Text
from service.jobs.trying import MOST_ANSWERS, MOST_TOKENS, Question

SHORT = 16
"""Tokens of what goes on with a text, where nobody says how many."""

Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256), PLAIN]


class TextPart(Body):
    """A part of what somebody says; there are no others than texts."""

    type: Literal["text"]
    text: Text


class Said(Body):
    """What somebody says in a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]

    def written(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class StreamOptions(Body):
    include_usage: bool = False


_NULL = {"type": "null"}
_STREAMED: Any = {"required": ["stream"], "properties": {"stream": {"const": True}}}
_OPTIONS_OF_A_STREAM: Any = [{"properties": {"stream_options": _NULL}}, _STREAMED]
_ONE_LIMIT: Any = [{"properties": {name: _NULL}} for name in ("max_tokens", "max_completion_tokens")]
"""What the classes below check, for the document."""


class Asked(Body):
    """What both routes take. The same `seed` gives the same answers; without one they are drawn by chance."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _OPTIONS_OF_A_STREAM})

    model: ModelName
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for streams: set stream, or leave them out")
        return self

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def question(self, chance: int) -> Question:
        """In the domain's terms; `chance` is the seed where none is given."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Question(
            max_tokens=self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            n=self.n or 1,
            seed=chance if self.seed is None else self.seed,
            stop=tuple(stops),
        )


class CreateChat(Asked):
    """POST /v1/chat/completions. Without `max_tokens`, or `max_completion_tokens`, which is the same, an answer has as
    many as the model has room for, at most 4096."""

    model_config = ConfigDict(json_schema_extra={"allOf": [{"anyOf": _OPTIONS_OF_A_STREAM}, {"anyOf": _ONE_LIMIT}]})

    messages: Annotated[list[Said], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        return self

    def question(self, chance: int) -> Question:
        limit = self.max_tokens or self.max_completion_tokens
        said = [message.written() for message in self.messages]
        return replace(super().question(chance), messages=said, max_tokens=limit)


class CreateCompletion(Asked):
    """POST /v1/completions. Without `max_tokens` an answer has 16, as OpenAI has it."""

    prompt: Annotated[str, StringConstraints(min_length=1), PLAIN]

    def question(self, chance: int) -> Question:
        return replace(super().question(chance), prompt=self.prompt, max_tokens=self.max_tokens or SHORT)
