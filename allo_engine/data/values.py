"""Values of answers, and whether two say the same. Free of torch.

    Options   (B); A and C            Number    1,000; ½; 50 %; 3.2e5     Amount    5 km; 1 hour 30 minutes; $5
    Time      10:30 a.m.; noon        Ratio     4 : 3                     Items     1, 2; (3, 4); x = ±2; 0 < x ≤ 1
    Matrix    \\begin{pmatrix} …       Date      July 4, 1776              Truth     yes; false
    Formula   x^2 + 1; \\sqrt{2}       Text      everything else

Two values of one kind are equal, different, or (None) not to be told apart from what can be read. Values of two kinds
are equal where one can be read as the other, and are otherwise not compared: an answer in an unforeseen form is no
wrong answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from allo_engine.data.quantities import Quantity, same_expression, same_quantity
from allo_engine.data.units import Amount


@dataclass(frozen=True)
class Options:
    letters: frozenset[str]


@dataclass(frozen=True)
class Number:
    text: str
    quantity: Quantity


@dataclass(frozen=True)
class Time:
    """Minutes since midnight; `settled` says whether it is told which half of the day."""

    minutes: int
    settled: bool


@dataclass(frozen=True)
class Ratio:
    parts: tuple[Fraction, ...]


@dataclass(frozen=True)
class Date:
    year: int | None
    month: int
    day: int


@dataclass(frozen=True)
class Items:
    """Values in brackets, such as "[)", or in none, "". Those in none or in braces have no order."""

    items: tuple[Value, ...]
    brackets: str = ""

    @property
    def ordered(self) -> bool:
        return self.brackets not in ("", "{}")


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Truth:
    value: bool


@dataclass(frozen=True)
class Formula:
    text: str


@dataclass(frozen=True)
class Text:
    words: str


Value = Options | Number | Amount | Time | Ratio | Date | Items | Matrix | Truth | Formula | Text


MOST_FORMULAS = 5
"""Formulas of a set that are held against those of another, each with each: each time may take its seconds."""


def same(a: Value, b: Value) -> bool | None:
    """Whether two values are one; None where that cannot be told."""
    match a, b:
        case Number(), Number():
            return same_quantity(a.quantity, b.quantity)
        case ((Number() | Formula()), (Number() | Formula())):
            return _same_formula(a.text, b.text)
        case Amount(), Amount():
            return _close(a.value, b.value) if a.dimension == b.dimension else None  # degrees, pounds and months
        case (Amount(), Number()) | (Number(), Amount()):
            return _same_figure(a, b)
        case Time(), Time():
            return _same_time(a, b)
        case Ratio(), Ratio():
            return len(a.parts) == len(b.parts) and _proportional(a.parts, b.parts)
        case (Ratio(), Number()) | (Number(), Ratio()):
            ratio, number = (a, b) if isinstance(a, Ratio) else (b, a)
            assert isinstance(ratio, Ratio)
            assert isinstance(number, Number)
            return True if len(ratio.parts) == 2 and ratio.parts[0] == number.quantity.value * ratio.parts[1] else None
        case Date(), Date():
            return a == b or (None if None in (a.year, b.year) and (a.month, a.day) == (b.month, b.day) else False)
        case Items(), Items():
            return _same_items(a, b)
        case Matrix(), Matrix():
            return _same_matrix(a, b)
        case Text(), Text():
            return a.words == b.words
        case (Options(), Options()) | (Truth(), Truth()):
            return a == b
    return None


# ---- comparisons of a kind


def _same_formula(a: str, b: str) -> bool | None:
    return True if "".join(a.casefold().split()) == "".join(b.casefold().split()) else same_expression(a, b)


def _close(a: Fraction, b: Fraction) -> bool:
    return bool(same_quantity(Quantity(a), Quantity(b)))


def _same_figure(a: Value, b: Value) -> bool | None:
    """A number beside an amount may leave the unit to be understood: as written, or the base unit, or not told."""
    given, number = (a, b) if isinstance(a, Amount) else (b, a)
    assert isinstance(given, Amount)
    assert isinstance(number, Number)
    value = number.quantity.value
    if given.figure is not None and _close(value, given.figure):
        return True
    return None if given.figure is None or _close(value, given.value) else False


def _same_time(a: Time, b: Time) -> bool | None:
    if a == b or (a.settled and b.settled):
        return a.minutes == b.minutes
    (hours, minutes), (others, of_others) = divmod(a.minutes, 60), divmod(b.minutes, 60)
    may_be_ratios = hours * of_others == others * minutes
    other_half = a.minutes % 720 == b.minutes % 720
    return True if a.minutes == b.minutes else None if may_be_ratios or other_half else False


def _proportional(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    return all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))


def _same_items(a: Items, b: Items) -> bool | None:
    """Two orders are compared where the reference `a` has one; half-open intervals are their brackets too."""
    if len(a.items) != len(b.items):
        return False
    if a.brackets != b.brackets and {a.brackets, b.brackets} & {"[)", "(]"}:
        return False if a.ordered and b.ordered else None
    if not a.ordered:
        if len(a.items) > MOST_FORMULAS and any(isinstance(item, Formula) for item in (*a.items, *b.items)):
            return None
        return _all_matched(list(a.items), list(b.items))
    found = _all([same(x, y) for x, y in zip(a.items, b.items, strict=True)])
    return found if b.brackets in ("", a.brackets) or (found is False and b.ordered) else None


def _all(found: Sequence[bool | None]) -> bool | None:
    return False if False in found else None if None in found else True


def _all_matched(left: list[Value], right: list[Value]) -> bool | None:
    """Whether the values of two lists are the same in some order."""
    doubt = False
    for value in left:
        found = [same(value, other) for other in right]
        if True in found:
            del right[found.index(True)]
        elif None in found:
            doubt = True
        else:
            return False
    return None if doubt else True


def _same_matrix(a: Matrix, b: Matrix) -> bool | None:
    if [len(row) for row in a.rows] != [len(row) for row in b.rows]:
        return False
    pairs = zip((x for row in a.rows for x in row), (y for row in b.rows for y in row), strict=True)
    return _all([same(x, y) for x, y in pairs])


# ---- free text


def normalise(text: str) -> str:
    """Free text as it is compared: one case, single spaces, no article, quotes, markup or punctuation at its ends."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = unicodedata.normalize("NFKC", text).casefold().translate(_STRAIGHT)
    text = re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", " ", text)
    text = " ".join(text.strip(ENDS).split())
    return re.sub(r"^(?:the|an?)\s+(?=\w)", "", text).strip(ENDS)


_STRAIGHT = str.maketrans("‘’“”−–—", "''\"\"---")
ENDS = " \t\n.,;:!?*_`'\"#$()[]"
