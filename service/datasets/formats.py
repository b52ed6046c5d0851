"""The forms of training lines: their fields, each with its other names, and how a line shows which it is.

Four formats are ours. The engine reads those by the same names: whatever is added to them here is added there. Forms of
other tools are made lines of the four when a file comes in (conversions.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from service.datasets import checks, conversions
from service.datasets.checks import Check, Fault

if TYPE_CHECKING:  # a process that checks one file need not load the engine's settings
    from allo_engine.pipeline import Format

Line = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """A field of a line: its names, of which a line has one, and what it may hold. null says that it is not there."""

    names: tuple[str, ...]
    check: Check = checks.text
    required: bool = True

    @cached_property
    def is_plain(self) -> Callable[[Any], bool]:
        """Quick to ask: what it holds of, `check` finds nothing in."""
        return _PLAIN.get(self.check, lambda _value: False)


_PLAIN: dict[Check, Callable[[Any], bool]] = {
    checks.chat: checks.is_chat,
    **dict.fromkeys((checks.text, checks.answer, checks.prompt, checks.response), checks.is_text),
}


Plain = Sequence[tuple[str, Callable[[Any], bool]]]
"""Names of fields, each with what is quick to ask of its value."""

Shows = Callable[[Set[str], Line], bool]
"""Whether a line has a form, be it complete or not, by the names that are not null in it, and by the line."""


@dataclass(frozen=True)
class Shape:
    """A form of lines. `name` is what users read. Another tool's form is made one of `format` by `convert`."""

    name: str
    format: Format
    fields: tuple[Field, ...]
    shows: Shows
    convert: Callable[[Line], Line] | None = None

    def values(self, line: Line) -> Line:
        """What the line has of the form's fields, each by its first name."""
        named = ((field.names[0], line.get(name)) for field in self.fields for name in field.names)
        return {name: value for name, value in named if value is not None}

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all its fields."""
        return frozenset(name for field in self.fields for name in field.names)


def _any_of(*names: str) -> Shows:
    """One of the fields suffices."""
    marks = frozenset(names)
    return lambda named, _line: not marks.isdisjoint(named)


def _optional(name: str, check: Check) -> Field:
    return Field((name,), check, required=False)


def _is_gsm8k(named: Set[str], line: Line) -> bool:
    answer = line.get("answer")
    return (
        "question" in named
        and named.isdisjoint(SOLUTION.names)
        and isinstance(answer, str)
        and conversions.gsm8k_answer(answer) != ""
    )


def _has_texts(named: Set[str], line: Line) -> bool:
    return "completion" in named and all(isinstance(line.get(name), str | None) for name in ("prompt", "completion"))


def _are_pairs(named: Set[str], _line: Line) -> bool:
    return named >= {"chosen", "rejected"} and "prompt" not in named


def _have_questions(named: Set[str], line: Line) -> bool:
    return _are_pairs(named, line) and not named.isdisjoint(QUESTION.names)


PROBLEM = Field(("problem", "question", "input"))
SOLUTION = Field(("solution", "output"))
QUESTION = Field(("question", "problem", "instruction", "input", "query"))
_CHATS = "chats {messages}, which have room for it"
_PAIRS = "preferences {prompt, chosen, rejected}, with these messages as the prompt"

TOOLS = (_optional("tools", checks.tools), _optional("functions", checks.functions))
"""What a line of messages may have beside them."""

_REFERENCE = _optional("solution", checks.optional_text)
_LABEL = _optional("label", checks.label)

SHAPES: tuple[Shape, ...] = (
    Shape(
        "corrections",
        "corrections",
        (PROBLEM, SOLUTION, Field(("prediction",)), Field(("correction",))),
        _any_of("prediction", "correction"),
    ),
    Shape(
        "preferences with questions",
        "preferences",
        (
            QUESTION,
            Field(("chosen",), checks.response),
            Field(("rejected",), checks.response),
            _optional("system", checks.optional_text),
            _REFERENCE,
        ),
        _have_questions,
        conversions.from_questions,
    ),
    Shape(
        "Alpaca",
        "problems",
        (
            Field(("instruction",)),
            Field(("input", "context"), checks.optional_text, required=False),
            Field(("output", "response")),
            _optional("system", checks.absent(_CHATS)),
            _optional("history", checks.absent(_CHATS)),
        ),
        _any_of("instruction"),
        conversions.from_alpaca,
    ),
    Shape(
        "ShareGPT",
        "chats",
        (
            Field(("conversations", "conversation"), conversions.turns),
            _optional("system", checks.optional_text),
            _optional("tools", checks.absent(_CHATS)),
            _optional("chosen", checks.absent(_PAIRS)),
            _optional("rejected", checks.absent(_PAIRS)),
        ),
        _any_of("conversations", "conversation"),
        conversions.from_sharegpt,
    ),
    Shape(
        "preferences",
        "preferences",
        (
            Field(("input",), checks.wrapped_messages),
            Field(("preferred_output",), checks.assistant_messages),
            Field(("non_preferred_output",), checks.assistant_messages),
            _REFERENCE,
        ),
        _any_of("preferred_output", "non_preferred_output"),
    ),
    Shape(
        "TRL, implicit prompts",
        "preferences",
        (
            Field(("chosen",), checks.response),
            Field(("rejected",), checks.response),
            _optional("prompt", checks.prompt),  # so that a slip in its name is told
            _optional("messages", checks.absent(_PAIRS)),
            _REFERENCE,
            *TOOLS,
        ),
        _are_pairs,
        conversions.from_implicit_prompt,
    ),
    Shape(
        "preferences",
        "preferences",
        (
            Field(("prompt",), checks.prompt),
            Field(("chosen",), checks.response),
            Field(("rejected",), checks.response),
            _REFERENCE,
            *TOOLS,
        ),
        _any_of("chosen", "rejected"),
    ),
    Shape("chats", "chats", (Field(("messages",), checks.chat), *TOOLS), _any_of("messages")),
    Shape(
        "TRL, prompts and completions",
        "problems",
        (Field(("prompt",)), Field(("completion",)), _LABEL),
        _has_texts,
        conversions.from_completion,
    ),
    Shape(
        "TRL, conversational prompts and completions",
        "chats",
        (Field(("prompt",), checks.prompt), Field(("completion",), checks.response), _LABEL, *TOOLS),
        _any_of("completion"),
        conversions.from_conversational_completion,
    ),
    Shape("GSM8K", "problems", (Field(("question",)), Field(("answer",))), _is_gsm8k, conversions.from_gsm8k),
    Shape(
        "problems",
        "problems",
        (PROBLEM, SOLUTION, _optional("answer", checks.answer)),
        _any_of(*PROBLEM.names, *SOLUTION.names),
    ),
)
"""Every form that a line may have; the first that a line shows is its own."""

OURS = {shape.format: shape for shape in SHAPES if shape.convert is None}
"""What a line of each format looks like once it was converted."""

KNOWN = frozenset(name for shape in SHAPES for name in shape.names)

EXPECTED = (
    "an object of one form: problems {problem, solution, answer?}, preferences {prompt, chosen, rejected, solution?} "
    "or {input, preferred_output, non_preferred_output}, chats {messages}, corrections {problem, solution, prediction, "
    "correction}, GSM8K {question, answer: '… #### 72'}, TRL {prompt, completion} or {chosen, rejected}, pairs "
    "{question, chosen, rejected}, Alpaca {instruction, input?, output}, ShareGPT {conversations: [{from, value}]}"
)

_HINTS = {
    "text": "a text alone has no answer to learn: cut it into {prompt, completion}",
    "completions": "one line for each completion, as {prompt, completion}",
    "query": "{prompt, completion}, with the query as the prompt",
    "response": "{prompt, completion}, with the response as the completion",
    "prompt": "a prompt with what answers it: {prompt, completion}, or {prompt, chosen, rejected}",
}
"""What a line of none of the forms may be on its way to."""


def shape_of(line: Line) -> Shape | None:
    """The form that a line has, be it complete or not."""
    named = {name for name, value in line.items() if value is not None}
    return next((shape for shape in SHAPES if shape.shows(named, line)), None)


def expected(line: Line) -> str:
    """What a line of none of the forms should be."""
    return next((hint for name, hint in _HINTS.items() if name in line), EXPECTED)


def faults_of(line: Line, shape: Shape) -> Iterator[tuple[str, Fault]]:
    """(field, fault) for everything in the line that is not as its shape has it.

    Fields of other names are ignored, unless a slip makes one of what the line lacks.
    """
    for field in shape.fields:
        given = [name for name in field.names if line.get(name) is not None]
        if len(given) == 1 and field.is_plain(line[given[0]]):
            continue
        if given or field.required:
            yield from _faults_of(line, field, given)
    if not line.keys() <= shape.names:
        yield from _misspelt(line, shape)


def quick_checks(line: Line, shape: Shape) -> Plain | None:
    """What it suffices to ask of a line of these very names: where every check holds of its field, `faults_of` finds
    nothing. None where the names themselves are at fault."""
    given = [(field, [name for name in field.names if name in line]) for field in shape.fields]
    if any(len(names) > 1 or (field.required and not names) for field, names in given):
        return None
    if not line.keys() <= shape.names and any(_misspelt(line, shape)):
        return None
    return tuple((name, field.is_plain) for field, names in given for name in names)


def _faults_of(line: Line, field: Field, given: list[str]) -> Iterator[tuple[str, Fault]]:
    if len(given) > 1:
        yield given[0], Fault("", f"is given beside {given[1]!r}, which means the same", "one of the two")
    elif given:
        for fault in field.check(line[given[0]]):
            yield given[0] + fault.path, fault
    else:
        null = next((name for name in field.names if name in line), None)
        yield null or field.names[0], Fault("", "is null" if null else "is missing", _spelled(field))


def _misspelt(line: Line, shape: Shape) -> Iterator[tuple[str, Fault]]:
    lacking = [field.names for field in shape.fields if not any(name in line for name in field.names)]
    for name, meant in checks.misspelt(line, [name for names in lacking for name in names]):
        yield name, Fault("", "is no field of ours", f"{meant!r}, or another name if it is a column of your own")


def _spelled(field: Field) -> str:
    others = ", ".join(field.names[1:])
    return f"a field {field.names[0]!r}" + (f" (or {others})" if others else "")


def may_be_ours(name: str) -> bool:
    """Whether a column is worth reading: a field of some form, or a slip away from one."""
    return name in KNOWN or any(checks.misspelt({name: None}, sorted(KNOWN)))
