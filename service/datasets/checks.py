"""What a field of a training line may hold. A check yields every fault that it finds, with what would be right."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Fault:
    """`path` leads from the field to the fault, as in `[2].content`; it is empty where the field itself is wrong."""

    path: str
    wrong: str
    right: str


Check = Callable[[Any], Iterator[Fault]]


def text(value: Any) -> Iterator[Fault]:
    """A text with something in it."""
    right = "a text that is not empty"
    if not isinstance(value, str):
        yield Fault("", f"is {kind(value)}", right)
    elif not value.strip():
        yield Fault("", "is empty", right)
    elif "\0" in value:
        yield Fault("", "holds a NUL character", "a text without it")


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
    if (yield from _told(messages(value))):
        return
    if value[0]["role"] == "assistant":
        yield Fault("[0].role", "is 'assistant'", "'system' or 'user': an answer comes after something")
    if all(message["role"] != "assistant" for message in value):
        yield Fault("", "has no assistant's answer", "at least one message of role 'assistant'")
    elif all(message.get("weight") == 0 for message in value if message["role"] == "assistant"):
        yield Fault("", "has no assistant's answer to learn from", "at least one without weight 0")


def is_text(value: Any) -> bool:
    """Whether `text` finds nothing. Most texts are right, and this is quicker to ask."""
    return type(value) is str and value != "" and not value.isspace() and "\0" not in value


def is_chat(value: Any) -> bool:
    """Whether `chat` finds nothing, of messages that are but a role and a text."""
    if type(value) is not list:
        return False
    answers = False
    for message in value:
        if type(message) is not dict or len(message) != 2 or not is_text(message.get("content")):
            return False
        role = message.get("role")
        if role == "assistant":
            answers = True
        elif role not in _ASKING:
            return False
    return answers and value[0]["role"] != "assistant"


_ASKING = ("user", "system", "developer")


def prompt(value: Any) -> Iterator[Fault]:
    """A text, or the messages before the response."""
    yield from text(value) if isinstance(value, str) else messages(value)


def response(value: Any) -> Iterator[Fault]:
    """A text, or messages that end with the assistant's."""
    yield from text(value) if isinstance(value, str) else assistant_messages(value)


def assistant_messages(value: Any) -> Iterator[Fault]:
    """Messages that end with the assistant's: that one is the response."""
    if not (yield from _told(messages(value))) and value[-1]["role"] != "assistant":
        yield Fault(f"[{len(value) - 1}].role", f"is {value[-1]['role']!r}", "'assistant': the response comes last")


def wrapped_messages(value: Any) -> Iterator[Fault]:
    """{"messages": […]}, as OpenAI's preference files have their input."""
    if not isinstance(value, dict) or "messages" not in value:
        yield Fault("", f"is {kind(value)} without messages", 'an object {"messages": […]}')
        return
    for fault in messages(value["messages"]):
        yield Fault(f".messages{fault.path}", fault.wrong, fault.right)
    for fault in tools(value.get("tools")):
        yield Fault(f".tools{fault.path}", fault.wrong, fault.right)


def tools(value: Any) -> Iterator[Fault]:
    """The tools that a conversation may call, as OpenAI describes them; null says that there are none."""
    right = '{"type": "function", "function": {"name": …, "parameters": …}}'
    if value is not None and not isinstance(value, list):
        yield Fault("", f"is {kind(value)}", f"a list of tools, each {right}")
        return
    for place, tool in enumerate(value or ()):
        if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict):
            yield Fault(f"[{place}]", "is no description of a function", right)
        else:
            yield from _below(f"[{place}].function.name", text, tool["function"], "name", "the function's name")


def functions(value: Any) -> Iterator[Fault]:
    """OpenAI's form before `tools`."""
    if value is not None:
        yield Fault("", "is OpenAI's old form", 'tools: [{"type": "function", "function": …}]')


def absent(instead: str) -> Check:
    """Nothing, or what says nothing: whatever else a form may have here is written `instead`."""

    def check(value: Any) -> Iterator[Fault]:
        if value not in (None, "", [], {}):
            yield Fault("", "is not taken over", instead)

    return check


def label(value: Any) -> Iterator[Fault]:
    """Where a form has no label, one of true or false may not be passed over: it tells good answers from bad ones."""
    if isinstance(value, bool):
        yield Fault("", "marks an answer as good or bad", "pairs of them: {prompt, chosen, rejected}")


def misspelt(holder: dict[str, Any], known: Collection[str]) -> Iterator[tuple[str, str]]:
    """(name, what it was meant to be) for names of an object that are one slip from a known one, which is not there."""
    unknown = (name for name in holder if name not in known and len(name) < LONGEST_NAME)
    for name in islice(unknown, MOST_NAMES):
        meant = _nearest(name, tuple(known))
        if meant and meant not in holder:
            yield name, meant


MOST_NAMES, LONGEST_NAME = 100, 40
"""Names of an object that are held against ours: it may have hundreds of thousands."""


def said(value: Any) -> str:
    """A value, where it is short enough to be repeated, else its type."""
    return f"{value!r:.40}" if isinstance(value, str | float | bool) else kind(value)


_KINDS = {bool: "true or false", str: "a text", list: "a list", **dict.fromkeys((int, float), "a number")}


def kind(value: Any) -> str:
    """A JSON value's type, in words."""
    return "null" if value is None else _KINDS.get(type(value), "an object")


def _message(path: str, message: Any) -> Iterator[Fault]:
    if not isinstance(message, dict):
        yield Fault(path, f"is {kind(message)}", 'an object {"role": …, "content": …}')
        return
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        wrong = f"is {said(role)}" if "role" in message else "is missing"
        yield Fault(f"{path}.role", wrong, "'tool'" if role == "function" else f"one of {', '.join(ROLES)}")
    for name, meant in misspelt(message, _OF_MESSAGES):
        yield Fault(f"{path}.{name}", "is no field of a message", f"{meant!r}, or another name")
    if message.get("content") is not None or message.get("tool_calls") is None:
        yield from _below(f"{path}.content", _content, message, "content", "a text that is not empty")
    for name in ("name", "tool_call_id"):
        if message.get(name) is not None:
            yield from _below(f"{path}.{name}", text, message, name, "")
    for name, check in _ASSISTANTS.items():
        if message.get(name) is None:
            continue
        if role == "assistant":
            yield from _below(f"{path}.{name}", check, message, name, "")
        else:
            yield Fault(f"{path}.{name}", "is on a message that is not the assistant's", f"no {name} here")


def _below(path: str, check: Check, holder: dict[str, Any], name: str, right: str) -> Iterator[Fault]:
    """The faults of a field below `path`; one that is not there should be `right`."""
    if name not in holder:
        yield Fault(path, "is missing", right)
        return
    for fault in check(holder[name]):
        yield Fault(path + fault.path, fault.wrong, fault.right)


def _content(value: Any) -> Iterator[Fault]:
    """A text, or the parts of one."""
    if not isinstance(value, list) or not value:
        yield from text(value)
        return
    for place, part in enumerate(value):
        if not isinstance(part, dict):
            yield Fault(f"[{place}]", f"is {kind(part)}", 'a text for all of it, or parts {"type": "text", "text": …}')
        elif part.get("type") != "text":
            wrong = f"is {said(part['type'])}" if "type" in part else "is missing"
            yield Fault(f"[{place}].type", wrong, "'text': models here read nothing else")
        else:
            yield from _below(f"[{place}].text", text, part, "text", "a text that is not empty")


def _weight(value: Any) -> Iterator[Fault]:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
        yield Fault("", f"is {said(value)}", "1 for an answer to learn from, 0 for one to read alone")


def _tool_calls(value: Any) -> Iterator[Fault]:
    right = '{"id": …, "type": "function", "function": {"name": …, "arguments": …}}'
    if not isinstance(value, list) or not value:
        yield Fault("", "is an empty list" if value == [] else f"is {kind(value)}", f"a list of calls, each {right}")
        return
    for place, call in enumerate(value):
        if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
            yield Fault(f"[{place}]", "is no call of a function", right)
            continue
        if call.get("id") is not None:
            yield from _below(f"[{place}].id", text, call, "id", "")
        yield from _below(f"[{place}].function.name", text, call["function"], "name", "the function's name")
        yield from _below(f"[{place}].function.arguments", _arguments, call["function"], "arguments", _ARGUMENTS)


_ARGUMENTS = 'a JSON object, or one as a text, as in "{\\"city\\": \\"Paris\\"}"'


def _arguments(value: Any) -> Iterator[Fault]:
    try:
        fine = isinstance(json.loads(value) if isinstance(value, str) else value, dict)
    except (ValueError, RecursionError):
        fine = False
    if not fine:
        yield Fault("", "is no JSON object", _ARGUMENTS)


def _old_form(_value: Any) -> Iterator[Fault]:
    yield Fault("", "is OpenAI's old form", "tool_calls")


_ASSISTANTS: dict[str, Check] = {"weight": _weight, "tool_calls": _tool_calls, "function_call": _old_form}
"""What the assistant's messages alone may have."""


_OF_MESSAGES = ("role", "content", "name", "tool_call_id", *_ASSISTANTS)


def _told(faults: Iterator[Fault]) -> Generator[Fault, None, bool]:
    """Yields the faults; whether there were any."""
    fault = None
    for fault in faults:
        yield fault
    return fault is not None


@lru_cache(maxsize=4096)
def _nearest(name: str, wanted: tuple[str, ...]) -> str | None:
    """What `name` was meant to be: the same but for case and signs, or one letter more, less, other or exchanged."""
    from rapidfuzz.distance import OSA  # here: few files have a name that is not ours

    plain = name.casefold().replace("-", "_").replace(" ", "_")
    return next((other for other in wanted if len(other) > 3 and OSA.distance(plain, other, score_cutoff=1) <= 1), None)
