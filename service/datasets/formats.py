"""The formats of training files: their fields, each with its other names, and how a line shows which it is.

The engine reads the uploaded file itself and knows the same names: whatever is added here is added there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from allo_engine.pipeline import Format
from service.datasets import checks
from service.datasets.checks import Check, Fault


@dataclass(frozen=True)
class Field:
    """A field of a line: its names, of which a line has one, and what it may hold."""

    names: tuple[str, ...]
    check: Check = checks.text
    required: bool = True


PROBLEM = Field(("problem", "question", "input"))
SOLUTION = Field(("solution", "output"))

TOOLS = (Field(("tools",), checks.tools, required=False), Field(("functions",), checks.functions, required=False))
"""What a line of messages may have beside them."""

SHAPES: tuple[tuple[Format, tuple[Field, ...]], ...] = (
    ("corrections", (PROBLEM, SOLUTION, Field(("prediction",)), Field(("correction",)))),
    (
        "preferences",
        (
            Field(("prompt",), checks.prompt),
            Field(("chosen",), checks.response),
            Field(("rejected",), checks.response),
            Field(("solution",), checks.optional_text, required=False),
            *TOOLS,
        ),
    ),
    (
        "preferences",
        (
            Field(("input",), checks.wrapped_messages),
            Field(("preferred_output",), checks.assistant_messages),
            Field(("non_preferred_output",), checks.assistant_messages),
            Field(("solution",), checks.optional_text, required=False),
        ),
    ),
    ("chats", (Field(("messages",), checks.chat), *TOOLS)),
    ("problems", (PROBLEM, SOLUTION, Field(("answer",), checks.answer, required=False))),
)
"""Every shape that a line may have. OpenAI's preferences are a second shape of the same format."""

MARKS: tuple[frozenset[str], ...] = (
    frozenset({"prediction", "correction"}),
    frozenset({"chosen", "rejected"}),
    frozenset({"preferred_output", "non_preferred_output"}),
    frozenset({"messages"}),
    frozenset(PROBLEM.names + SOLUTION.names),
)
"""For each shape the fields of which one suffices to tell it; the first shape that has one wins."""

EXPECTED = (
    "an object of one format: problems {problem, solution, answer?}, preferences {prompt, chosen, rejected, solution?} "
    "or {input, preferred_output, non_preferred_output}, chats {messages}, corrections {problem, solution, prediction, "
    "correction}"
)


def shape_of(line: Mapping[str, Any]) -> int | None:
    """Which of `SHAPES` a line has, be it complete or not."""
    return next((place for place, marks in enumerate(MARKS) if not marks.isdisjoint(line)), None)


def faults_of(line: Mapping[str, Any], shape: int) -> Iterator[tuple[str, Fault]]:
    """(field, fault) for everything in the line that is not as its shape has it. Fields of other names are ignored."""
    for field in SHAPES[shape][1]:
        given = [name for name in field.names if name in line]
        if len(given) > 1:
            wrong = f"is given beside {given[1]!r}, which means the same"
            yield given[0], Fault("", wrong, "one of the two")
        elif given:
            for fault in field.check(line[given[0]]):
                yield given[0] + fault.path, fault
        elif field.required:
            yield field.names[0], Fault("", "is missing", _spelled(field))


def _spelled(field: Field) -> str:
    others = ", ".join(field.names[1:])
    return f"a field {field.names[0]!r}" + (f" (or {others})" if others else "")
