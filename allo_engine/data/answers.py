"""What a response answers, and whether that is right. Free of torch.

A wrong response is *forgotten* by the stages that follow, so a right one that is called wrong does harm. Hence three
verdicts, and one rule: WRONG only where an answer was read and is another one. Whatever cannot be read is UNPARSED.

    where    behind the last marker: "The answer is", "Answer:", "Final answer", "####", \\boxed{…}; or before "is the
             answer". A response without a marker counts only when the whole of it is an answer, such as "42" or "(B)":
             the last number of some reasoning is never taken for its answer. See finding.py.
    what     the reference is a value of some kind, and the answer is read as one of that kind; then values are
             compared: 1,000 = 1000, 4 : 3 = 8 : 6, 10:30 PM = 22:30, 5 km = 5000 m, {1, 2} = 2 and 1. See values.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from allo_engine.data.finding import find, trim
from allo_engine.data.parsing import parse
from allo_engine.data.quantities import (
    Quantity,
    is_expression,
    same_expression,
    same_quantity,
    stated_number,
    whole_number,
)
from allo_engine.data.units import Amount, stated_amount
from allo_engine.data.values import Number, Options, Text, Truth, Value, normalise, same


class Verdict(StrEnum):
    """What comparing a response with the reference answer gave."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSED = "unparsed"  # no answer could be read, which says nothing against the response


@dataclass(frozen=True)
class Answer:
    """An answer as its author wrote it, freed of the sentence around it, and what it says."""

    text: str
    value: Value


Readings = Sequence[str]
"""Where an answer may end, the longest reading first."""


def extract(text: str) -> Answer | None:
    """The answer that `text` gives, or None where it gives none that can be told apart from the rest."""
    found = find(text)
    if found is None:
        return None
    answer = trim(found.sentence())
    value = parse(answer)
    if not answer or not (found.after_marker or _is_bare(answer, value)):
        return None
    return Answer(answer, value)


def compare(response: str, gold: str) -> Verdict:
    """Whether `response` gives the answer `gold`. `gold` is the answer alone: see `reference`."""
    found = find(response)
    gold = trim(gold)
    if found is None or not gold:
        return Verdict.UNPARSED
    readings = [trim(reading) for reading in found.readings()]
    expected = parse(gold)
    judge = _JUDGES.get(type(expected), _as_value)
    right = judge(gold, expected, readings, found.marked)
    factorial = re.fullmatch(r"\D{0,3}(\d{1,2})!\D{0,3}", found.line())
    if right is False and factorial:  # "5!" is 120, or a 5 with stress
        right = judge(gold, expected, [str(math.factorial(int(factorial[1])))], found.marked)
    return Verdict.UNPARSED if right is None else Verdict.RIGHT if right else Verdict.WRONG


def reference(problem: Mapping[str, Any]) -> str | None:
    """The gold answer of a problem: its `answer`, else what its `solution` answers. None if it has neither."""
    given = problem.get("answer")
    if given is not None and str(given).strip():
        return str(given)
    answer = extract(str(problem.get("solution") or ""))
    return answer.text if answer else None


def _is_bare(answer: str, value: Value) -> bool:
    """Whether a response without a marker is nothing but an answer: no free text, and no line of reckoning."""
    return not isinstance(value, Text) and not re.search(r"=.*=|[^a-z\s].*=", answer)


# ---- how an answer is read for each kind of reference: True, False, or None where it cannot be read


def _as_value(gold: str, expected: Value, readings: Readings, marked: bool) -> bool | None:
    """The shortest reading that can be compared decides."""
    for reading in _candidates(readings):
        if "".join(gold.casefold().split()) == "".join(reading.casefold().split()):
            return True
        value = parse(reading)
        right = same(expected, value) if marked or _is_bare(reading, value) else None
        if right is not None:
            return right
    return None


def _candidates(readings: Readings) -> list[str]:
    """The readings, shortest first; then without the words before a value ("the point (3, 4)"), and the one formula or
    the one time of day within."""
    shortest = readings[-1]
    formulas = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", shortest)
    clocks = re.findall(r"\d{1,2}:[0-5]\d(?:\s*[ap]\.?m\b\.?)?", shortest, re.I)
    inner = [a or b for a, b in formulas] if len(formulas) == 1 else []
    inner += clocks if len(clocks) == 1 else []
    return list(dict.fromkeys([*reversed(readings), _LEAD.sub("", shortest), *inner]))


_LEAD = re.compile(
    r"^(?:(?:the|an?)\s+)?(?:(?:ordered|closed|open|half-open|solution)\s+)?(?:points?|pairs?|vectors?|intervals?|"
    r"coordinates|sets?|lists?|solutions?|values?|roots?|matrix|ratio|time|line|equation|function)"
    r"(?:\s+(?:is|are|of))?\s+(?=\S)",
    re.I,
)


def _as_options(_gold: str, expected: Value, readings: Readings, marked: bool) -> bool | None:
    assert isinstance(expected, Options)
    plain = [re.sub(r"\\(?:text|mathrm)(?:bf|rm)?\s*\{([^{}]*)\}", r"\1 ", reading).strip() for reading in readings]
    if len(expected.letters) > 1:
        given = {value.letters for reading in plain if isinstance(value := parse(reading), Options)}
        return {expected.letters} == given if len(given) == 1 else None
    letters = {_option(reading, marked) for reading in plain} - {None}
    return letters == expected.letters if len(letters) == 1 else None


_OPTION = re.compile(
    r"(?:(?i:option|choice|letter|answer)\s*[:#]?\s*)?[*_]*"
    r"(?:\(\s*([A-Ja-j])\s*\)|([A-Ja-j])(?:[):]|\.(?=\s|$)|[*_]+|$)|([B-HJ])\b)"
)


def _option(reading: str, marked: bool) -> str | None:
    """The one option that a reading begins with."""
    found = _OPTION.match(reading)
    if not found or (found[3] and not marked):
        return None
    rest = reading[found.end() :]
    if re.match(r"\W*(?:and|or|,|/|&)\W*\(?[A-J]\b", rest) or re.search(r"\bor\b", rest[:4]):
        return None
    return next(letter for letter in found.groups() if letter).upper()


def _as_number(gold: str, expected: Value, readings: Readings, marked: bool) -> bool | None:
    assert isinstance(expected, Number)
    for reading in reversed(readings):
        found = _number(reading, marked)
        if found is not None:
            return same_quantity(expected.quantity, found)
    maths = readings[-1]
    several = re.search(r"\b(?:and|or)\b|[,;:<>≤≥±]", maths)
    return same_expression(gold, maths) if marked and is_expression(maths) and not several else None


def _number(reading: str, marked: bool) -> Quantity | None:
    return whole_number(reading) or (stated_number(reading) if marked or _WITH_UNIT.fullmatch(reading) else None)


_WITH_UNIT = re.compile(r"\W{0,3}\d[\d.,]*\s?(?:[^\W\d]+[ /.]*){1,3}")


def _as_amount(gold: str, expected: Value, readings: Readings, marked: bool) -> bool | None:
    """An amount in any unit of its dimension; a figure alone, where it is the reference's own."""
    assert isinstance(expected, Amount)
    right = _as_value(gold, expected, readings, marked)
    if right is not None or not marked:
        return right
    stated = stated_amount(readings[-1])
    if stated:
        return same(expected, stated)
    figure = stated_number(readings[-1])
    return True if figure and expected.figure == figure.value else None


def _as_truth(_gold: str, expected: Value, readings: Readings, _marked: bool) -> bool | None:
    first = re.match(r"\w+", normalise(readings[-1]))
    given = parse(first[0]) if first else None
    return expected == given if isinstance(given, Truth) else None


def _as_text(gold: str, expected: Value, readings: Readings, marked: bool) -> bool | None:
    assert isinstance(expected, Text)
    given = [normalise(_OPTION_LABEL.sub("", reading)) for reading in readings]
    unlabelled = normalise(_OPTION_LABEL.sub("", gold))
    if {expected.words, unlabelled} & set(given) or _squeeze(expected.words) in map(_squeeze, given):
        return True
    if _listed(expected.words) in map(_listed, given):
        return True
    stated, figure = stated_number(gold), whole_number(readings[-1])
    if stated and figure:
        return same_quantity(stated, figure)
    cut_off = any(expected.words.startswith(reading) for reading in given)
    if not marked or cut_off or isinstance(parse(readings[-1]), Options):
        return None
    return re.match(re.escape(expected.words) + r"\s*[,;:(\-.]", given[0]) is not None


_OPTION_LABEL = re.compile(r"^(?:option\s+)?\(?[A-Ja-j][).:]\s+(?=\S)", re.I)


def _squeeze(text: str) -> str:
    return re.sub(r"(?<=\d)\s+(?=[^\W\d])", "", text)


def _listed(text: str) -> frozenset[str]:
    """The parts of "red, green and blue", whatever their order."""
    return frozenset(normalise(part) for part in re.split(r",\s*(?:and\s+)?|;\s*|\s+and\s+", text))


Judge = Callable[[str, Value, Readings, bool], bool | None]
_JUDGES: dict[type[Value], Judge] = {
    Options: _as_options,
    Number: _as_number,
    Amount: _as_amount,
    Truth: _as_truth,
    Text: _as_text,
}
"""How a response is read for a reference of that kind; every other kind is parsed as it is."""
