"""What models answer."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict


class Usage(TypedDict):
    """Tokens: of the prompt, once, and of all answers, the one that ends each included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One answer. It ended by itself or at a stop ("stop"), or was as long as allowed ("length")."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None


class ChatCompletion(TypedDict):
    """A model's answers to a conversation. Streamed, they come as `chat.completion.chunk`s with a `delta` each."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(TypedDict):
    """One way in which a text goes on."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: None


class TextCompletion(TypedDict):
    """How a model goes on with a text. Streamed, it comes in pieces of the same shape."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
