"""What a field of a training line may hold. A check yields every fault that it finds, with what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Fault:
    """`path` leads from the field to the fault, as in `[2].content`; it is empty where the field itself is wrong."""

    path: str
    wrong: str
    right: str


Check = Callable[[Any], Iterator[Fault]]


def text(value: Any) -> Iterator[Fault]:
    """A text with something in it, which UTF-8 can hold."""
    right = "a text that is not empty"
    if not isinstance(value, str):
        yield Fault("", f"is {kind(value)}", right)
    elif not value.strip():
        yield Fault("", "is empty", right)
    elif "\0" in value:
        yield Fault("", "holds a NUL character", "a text without it")
    elif _lone_surrogate(value):
        yield Fault("", "holds half a surrogate pair", r"whole characters: \ud83d\ude00 and not \ud83d alone")


def answer(value: Any) -> Iterator[Fault]:
    """A text or a number; null says that there is none."""
    if isinstance(value, str):
        yield from text(value)
    elif isinstance(value, bool) or not isinstance(value, int | float | None):
        yield Fault("", f"is {kind(value)}", "a text or a number")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Fault("", "is too large a number", "a finite number, or a text")


def optional_text(value: Any) -> Iterator[Fault]:
    """A text; null or an empty one says that there is none."""
    if value not in (None, ""):
        yield from text(value)


def messages(value: Any) -> Iterator[Fault]:
    """Messages, as the chat APIs have them."""
    if not isinstance(value, list) or not value:
        wrong = "is an empty list" if value == [] else f"is {kind(value)}"
        yield Fault("", wrong, 'a list of messages, each {"role": …, "content": …}')
        return
    for place, message in enumerate(value):
        yield from _message(f"[{place}]", message)


def chat(value: Any) -> Iterator[Fault]:
    """Messages with something to learn: at least one answer of the assistant, and each to something."""
    faults = list(messages(value))
    yield from faults
    if faults:
        return
    if value[0]["role"] == "assistant":
        yield Fault("[0].role", "is 'assistant'", "'system' or 'user': an answer comes after something")
    if all(message["role"] != "assistant" for message in value):
        yield Fault("", "has no assistant's answer", "at least one message of role 'assistant'")


def prompt(value: Any) -> Iterator[Fault]:
    """A text, or the messages before the response."""
    yield from text(value) if isinstance(value, str) else messages(value)


def response(value: Any) -> Iterator[Fault]:
    """A text, or messages that end with the assistant's."""
    yield from text(value) if isinstance(value, str) else assistant_messages(value)


def assistant_messages(value: Any) -> Iterator[Fault]:
    """Messages that end with the assistant's: that one is the response."""
    faults = list(messages(value))
    yield from faults
    if not faults and value[-1]["role"] != "assistant":
        yield Fault(f"[{len(value) - 1}].role", f"is {value[-1]['role']!r}", "'assistant': the response comes last")


def wrapped_messages(value: Any) -> Iterator[Fault]:
    """{"messages": […]}, as OpenAI's preference files have their input."""
    if not isinstance(value, dict) or "messages" not in value:
        yield Fault("", f"is {kind(value)} without messages", 'an object {"messages": […]}')
        return
    for fault in messages(value["messages"]):
        yield Fault(f".messages{fault.path}", fault.wrong, fault.right)


def kind(value: Any) -> str:
    """A JSON value's type, in words."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
    }
    return names.get(type(value), "an object")


def _message(path: str, message: Any) -> Iterator[Fault]:
    if not isinstance(message, dict):
        yield Fault(path, f"is {kind(message)}", 'an object {"role": …, "content": …}')
        return
    if message.get("role") not in ROLES:
        wrong = f"is {message['role']!r:.40}" if "role" in message else "is missing"
        yield Fault(f"{path}.role", wrong, f"one of {', '.join(ROLES)}")
    if "content" not in message:
        yield Fault(f"{path}.content", "is missing", "a text that is not empty")
    else:
        for fault in text(message["content"]):
            yield Fault(f"{path}.content", fault.wrong, fault.right)


def _lone_surrogate(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
