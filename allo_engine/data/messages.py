"""Messages of a conversation in OpenAI's form, and as chat templates take them. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
"""{role, content, tool_calls?, tool_call_id?, name?, weight?}."""

Prompt = str | list[Message]
"""A problem's text, or the messages of a conversation."""


def as_messages(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def content_of(message: Message) -> str:
    """A message's text: that of its parts joined, and none where it only calls tools."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def is_learned(message: Message) -> bool:
    """Whether a message is an answer to learn from: the assistant's, unless its weight is 0."""
    return message["role"] == "assistant" and message.get("weight") != 0


def for_template(message: Message, knows_developers: bool = True) -> dict[str, Any]:
    """A message as chat templates take it: content as one text, the arguments of tool calls as objects.

    What OpenAI calls a developer's message is a system message where the template has no such role.
    """
    given = {key: value for key, value in message.items() if key != "weight" and value is not None}
    given["content"] = content_of(message)
    if message.get("role") == "developer" and not knows_developers:
        given["role"] = "system"
    if message.get("tool_calls"):
        given["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return given


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    read = json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    return {**call, "function": {**function, "arguments": read}}


def lost_message(messages: Sequence[Message], text: str) -> Message | None:
    """The first message that `text` does not hold: some templates pass over the roles that they do not know.

    The assistant's may be shortened, of what it thought. Some templates write texts as JSON.
    """
    for message in messages:
        content = message["content"].strip()
        written = (content, json.dumps(content, ensure_ascii=False)[1:-1])
        if message["role"] != "assistant" and not any(form in text for form in written):
            return message
    return None
