"""Texts to the values that they say, where all of a text is an answer. Free of torch.

A reader a kind: it gives a value where the whole text has its form. The forms exclude one another but for free text,
which every text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from allo_engine.data.quantities import is_expression, whole_number
from allo_engine.data.units import amount
from allo_engine.data.values import (
    Date,
    Formula,
    Items,
    Matrix,
    Number,
    Options,
    Ratio,
    Text,
    Time,
    Truth,
    Value,
    normalise,
)

MOST_ITEMS = 16
"""Longer lists are no lists to us: comparing them pair by pair must end."""


def parse(text: str) -> Value:
    """What `text` says, all of it."""
    return next(value for read in _READERS if (value := read(text)) is not None)


_LETTER = r"\(\s*[A-Ja-j]\s*\)|[A-J](?!\w)"
_LETTERS = re.compile(rf"(?:{_LETTER})(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*)(?:{_LETTER}))*|[a-j]\s*\)|[A-J]\s*\)")


def _options(text: str) -> Options | None:
    if not _LETTERS.fullmatch(text):
        return None
    found = re.findall(_LETTER, text) or [text]
    return Options(frozenset(letter.strip("() ").upper() for letter in found))


def _number(text: str) -> Number | None:
    quantity = whole_number(text)
    return Number(text, quantity) if quantity and quantity.certain else None


_CLOCK = re.compile(r"(\d{1,2})(?::([0-5]\d))?\s*(a\.?m\.?|p\.?m\.?|o'clock)?")
_HOURS = {"noon": Time(720, True), "midday": Time(720, True), "midnight": Time(0, True)}


def _time(text: str) -> Time | None:
    text = _unmarked(text).replace("’", "'")
    found = _CLOCK.fullmatch(text)
    if not found or not (found[2] or found[3]):
        return _HOURS.get(text)
    hour, minute, half = int(found[1]), int(found[2] or 0), (found[3] or "")[:1]
    if half in ("a", "p") and 1 <= hour <= 12:
        return Time((hour % 12 + 12 * (half == "p")) * 60 + minute, True)
    return Time(hour * 60 + minute, hour > 12) if hour < 24 and half not in ("a", "p") else None


_RATIO = re.compile(r"\d{1,12}(?:\.\d{1,9})?(?:\s*(?::|to|\\colon)\s*\d{1,12}(?:\.\d{1,9})?){1,5}")


def _ratio(text: str) -> Ratio | None:
    text = _unmarked(text)
    if not _RATIO.fullmatch(text):
        return None
    parts = tuple(Fraction(part) for part in re.findall(r"\d+(?:\.\d+)?", text))
    return Ratio(parts) if all(parts) else None


_MONTHS = ["january", "february", "march", "april", "may", "june"]
_MONTHS += ["july", "august", "september", "october", "november", "december"]
_DATE = re.compile(
    rf"(?:(?P<first>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? )?(?P<month>{'|'.join(_MONTHS)})"
    r"(?: (?P<second>\d{1,2})(?:st|nd|rd|th)?)?(?:,? (?P<year>\d{4}))?"
)


def _date(text: str) -> Date | None:
    found = _DATE.fullmatch(_unmarked(text).removeprefix("the "))
    if not found or bool(found["first"]) == bool(found["second"]):
        return None
    year = int(found["year"]) if found["year"] else None
    return Date(year, _MONTHS.index(found["month"]) + 1, int(found["first"] or found["second"]))


_ENVIRONMENT = re.compile(r"\\begin\s*\{([pbvB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\s*\{\1\}", re.S)


def _matrix(text: str) -> Matrix | None:
    text = text.strip().removeprefix("\\left").strip()
    found = _ENVIRONMENT.search(text) if text.startswith(("\\begin", "[\\begin", "(\\begin", "[ \\begin")) else None
    if found:
        rows = [row.split("&") for row in re.split(r"\\\\(?:\[\w*\])?", found[2]) if row.strip()]
    else:
        inner = re.fullmatch(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*)\s*\]", text)
        if not inner:
            return None
        rows = [row.split(",") for row in re.findall(r"\[([^\[\]]*)\]", inner[1])]
    if not rows or sum(map(len, rows)) > MOST_ITEMS or len({len(row) for row in rows}) > 1:
        return None
    values = tuple(tuple(_part(entry) for entry in row) for row in rows)
    return None if any(isinstance(value, Text) for row in values for value in row) else Matrix(values)


_PAIRS = {"(": ")]", "[": ")]", "{": "}", "<": ">"}
_BOUND = r"([^<>≤≥=,]{1,30}?)"
_BETWEEN = re.compile(rf"{_BOUND}\s*([<≤])\s*[a-z]\s*([<≤])\s*{_BOUND}")
_BEYOND = re.compile(rf"[a-z]\s*([<>≤≥])\s*{_BOUND}")


def _items(text: str) -> Items | None:
    """Several values, be it in brackets, by commas and words, as an inequality, or as ± one."""
    text = _plain_brackets(text)
    if len(text) > 400 or text.count("\\begin"):
        return None
    either = re.fullmatch(r"(?:[a-z]\s*=\s*)?(?:±|\\pm)\s*(.+)", text)
    if either and not re.search(r"[+,±]|\\pm|(?<!^)-", either[1]):
        return _listed([either[1], f"-{either[1]}"], "")
    interval = _inequality(text)
    if interval:
        return interval
    if text[:1] in _PAIRS and text[-1:] in _PAIRS[text[0]] and _closes_at_end(text):
        brackets = "()" if text[0] == "<" else text[0] + text[-1]
        parts = _split(text[1:-1], words=False)
        parts = parts if len(parts) > 1 else text[1:-1].split(",")
        return _listed(parts, brackets) if len(parts) > 1 or brackets in ("{}", "[]") else None
    parts = _split(text, words=True)
    return _listed(parts, "") if len(parts) > 1 else None


def _plain_brackets(text: str) -> str:
    text = re.sub(r"\\(?:left|right|,|;|!|quad|displaystyle)(?![a-z])", "", text)
    names = {"\\{": "{", "\\}": "}", "\\langle": "<", "\\rangle": ">", "\\lbrace": "{", "\\rbrace": "}"}
    for name, sign in {**names, "\\leq": "≤", "\\le": "≤", "\\geq": "≥", "\\ge": "≥", "<=": "≤", ">=": "≥"}.items():
        text = re.sub(re.escape(name) + r"(?![a-z])", sign, text)
    text = re.sub(r"(?<![\\\w])(?:inf|infty|infinity)\b|∞", r"\\infty", text)
    return text.replace("$", "").strip()


def _inequality(text: str) -> Items | None:
    between, beyond = _BETWEEN.fullmatch(text), _BEYOND.fullmatch(text)
    if between:
        left, right = "([", ")]"
        brackets = left[between[2] == "≤"] + right[between[3] == "≤"]
        return _listed([between[1], between[4]], brackets)
    if not beyond:
        return None
    above, closed = beyond[1] in ">≥", beyond[1] in "≤≥"
    ends = [beyond[2], "\\infty"] if above else ["-\\infty", beyond[2]]
    return _listed(ends, ("[)" if closed else "()") if above else ("(]" if closed else "()"))


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens the text is closed by the one that ends it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>")
        if depth == 0:
            return place == len(text) - 1
    return False


_SEPARATOR = re.compile(r"(,?\s+(?:and|or)\s+|;|,\s+|,(?!\d{3}(?:\D|$))|[(\[{)\]}])")


def _split(text: str, words: bool) -> list[str]:
    """The parts of a list: between its commas, semicolons and (with `words`) "and" and "or", outside of brackets."""
    parts, depth = [""], 0
    for piece in _SEPARATOR.split(text):
        depth += (piece in ("(", "[", "{")) - (piece in (")", "]", "}"))
        separates = _SEPARATOR.fullmatch(piece) and piece not in tuple("([{)]}")
        if depth == 0 and separates and (words or not piece.strip(" ,").isalpha()):
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts if part.strip()]


def _listed(parts: Sequence[str], brackets: str) -> Items | None:
    """Items, unless a part is but text. Of "x = 3, y = 4" the values in the order of their names, of "x = 2 or x = 3"
    a set."""
    if len(parts) > MOST_ITEMS:
        return None
    named = [re.fullmatch(r"([a-z])\s*=\s*(.+)", part) for part in parts]
    if parts and all(named) and not brackets:
        pairs = [(match[1], match[2]) for match in named if match]
        names = {name for name, _ in pairs}
        if len(names) == len(parts):
            parts, brackets = [value for _, value in sorted(pairs)], "()"
        elif len(names) == 1:
            parts = [value for _, value in pairs]
    values = tuple(_part(part) for part in parts)
    return None if any(isinstance(value, Text | Options) for value in values) else Items(values, brackets)


def _part(text: str) -> Value:
    """A value within another, one step deeper at most: what nests further is a formula or a text."""
    text = text.strip().strip("$").strip()
    return next(
        (value for read in (_number, amount, _inner_items, _formula, _symbol) if (value := read(text))), None
    ) or Text(normalise(text))


def _symbol(text: str) -> Formula | None:
    return Formula(text) if re.fullmatch(r"-?[a-zA-Z]", text) else None


def _inner_items(text: str) -> Items | None:
    return _items(text) if text[:1] in "([{" and text.count("(") + text.count("[") + text.count("{") == 1 else None


def _truth(text: str) -> Truth | None:
    value = {"yes": True, "true": True, "no": False, "false": False}.get(_unmarked(text))
    return None if value is None else Truth(value)


def _formula(text: str) -> Formula | None:
    named = {"infinity": "\\infty", "∞": "\\infty", "∅": "\\emptyset", "\\varnothing": "\\emptyset"}
    text = named.get(text.casefold().strip("{} "), text)
    return Formula(text) if is_expression(text) else None


def _text(text: str) -> Text:
    return Text(normalise(text))


def _unmarked(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r" \1", text)
    return " ".join(re.sub(r"\\[,;! ]|[~$]", " ", text).casefold().split()).strip()


_READERS: tuple[Callable[[str], Value | None], ...] = (
    *(_options, amount, _number, _time, _ratio, _date, _matrix, _items, _truth, _formula, _text),
)
