"""A line of a file as token ids: what comes before, and what is learned. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from allo_engine.data.messages import Message, is_learned
from allo_engine.data.prompts import Encoder
from allo_engine.data.records import as_problem


def examples_of(line: Mapping[str, Any], encoder: Encoder) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt ids, response ids) of a problem or a chat: a chat's every assistant turn is a response, those of weight 0
    aside."""
    if line.get("messages") is not None:
        yield from _turns(line["messages"], line.get("tools"), encoder)
    else:
        problem = as_problem(line)
        yield encoder.prompt(problem.problem), encoder.response(problem.solution)


def _turns(messages: list[Message], tools: list[Any] | None, encoder: Encoder) -> Iterator[tuple[list[int], list[int]]]:
    for place, message in enumerate(messages):
        if is_learned(message):
            before = messages[:place]
            yield encoder.prompt(before, tools), encoder.turn(before, message, tools)


def preference_of(line: Mapping[str, Any], encoder: Encoder) -> tuple[list[int], list[int], list[int]]:
    """The ids of prompt, chosen and rejected, given as texts or as messages of which the last is the response."""
    if line.get("preferred_output") is not None:
        prompt, tools = line["input"]["messages"], line["input"].get("tools")
        responses = line["preferred_output"], line["non_preferred_output"]
    else:
        prompt, tools, responses = line["prompt"], line.get("tools"), (line["chosen"], line["rejected"])
    answers = [response if isinstance(response, str) else response[-1] for response in responses]
    chosen, rejected = (encoder.turn(prompt, answer, tools) for answer in answers)
    return encoder.prompt(prompt, tools), chosen, rejected
