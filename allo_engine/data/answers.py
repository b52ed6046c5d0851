"""What a response answers, and whether that is right. Free of torch.

A wrong response is *forgotten* by the stages that follow, so a right one that is called wrong does harm. Hence three
verdicts, and one rule: WRONG only where an answer was read and is another one. Whatever cannot be read is UNPARSED.

    where    behind the last marker: "The answer is", "Answer:", "Final answer", "####", \\boxed{…}; or before "is the
             answer". A response without a marker counts only when the whole of it is an answer, such as "42" or "(B)":
             the last number of some reasoning is never taken for its answer.
    what     the reference decides: an option letter, a number, a maths expression, or free text. Both sides are then
             read by the same functions: 1,000 = 1000, $5 = 5, 50 % = 50 = 0.5, \\frac12 = 0.5, (b) = B, The Sun. = sun.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from allo_engine.data.quantities import (
    Quantity,
    is_expression,
    same_expression,
    same_quantity,
    stated_number,
    whole_number,
)


class Verdict(StrEnum):
    """What comparing a response with the reference answer gave."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSED = "unparsed"  # no answer could be read, which says nothing against the response


class Kind(StrEnum):
    """How an answer is compared."""

    OPTION = "option"
    NUMBER = "number"
    MATHS = "maths"
    TEXT = "text"


@dataclass(frozen=True)
class Answer:
    """An answer as its author wrote it, freed of the sentence around it."""

    text: str
    kind: Kind


def extract(text: str) -> Answer | None:
    """The answer that `text` gives, or None where it gives none that can be told apart from the rest."""
    found = _find(text)
    if found is None:
        return None
    answer = _trim(found.sentence())
    kind = kind_of(answer)
    if not answer or not (found.after_marker or _is_bare_answer(answer, kind)):
        return None
    return Answer(answer, kind)


def compare(response: str, gold: str) -> Verdict:
    """Whether `response` gives the answer `gold`. `gold` is the answer alone: see `reference`."""
    found = _find(response)
    gold = _trim(gold)
    if found is None or not gold:
        return Verdict.UNPARSED
    readings = [_trim(reading) for reading in found.readings()]
    same = _COMPARE[kind_of(gold)](gold, readings, found.marked)
    return Verdict.UNPARSED if same is None else Verdict.RIGHT if same else Verdict.WRONG


def reference(problem: Mapping[str, Any]) -> str | None:
    """The gold answer of a problem: its `answer`, else what its `solution` answers. None if it has neither."""
    given = problem.get("answer")
    if given is not None and str(given).strip():
        return str(given)
    answer = extract(str(problem.get("solution") or ""))
    return answer.text if answer else None


def kind_of(answer: str) -> Kind:
    """How an answer must be compared, told by its form."""
    if _OPTION_ALONE.fullmatch(answer):
        return Kind.OPTION
    if whole_number(answer):
        return Kind.NUMBER
    return Kind.MATHS if is_expression(answer) else Kind.TEXT


def normalise(text: str) -> str:
    """Free text as it is compared: one case, single spaces, no article, quotes, markup or punctuation at its ends."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = unicodedata.normalize("NFKC", text).casefold().translate(_STRAIGHT)
    text = re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", " ", text)
    text = " ".join(text.strip(_ENDS).split())
    return re.sub(r"^(?:the|an?)\s+(?=\w)", "", text).strip(_ENDS)


_STRAIGHT = str.maketrans("‘’“”−–—", "''\"\"---")
_ENDS = " \t\n.,;:!?*_`'\"#$()[]"


# ---- where: the part of a response that is its answer

_MARKER = re.compile(
    r"""
      \b(?:final\s+|correct\s+|right\s+|best\s+)*(?:answer|ans)\b (?!\s+(?:key|sheet)\b)
      (?: (?:\s+(?:choice|option|to|for|of|here|then|therefore)\b [^\n.:=?]{0,60}?)?
          (?:,\s*(?:therefore|then|thus|hence|so),?)?
          [*_\s]* (?: (?:is|are|was|would\s+be|must\s+be|should\s+be)\b(?:\s*[:=])? | [:=] )
        | [*_\s]*\n )
    | ^\s*\#{4}(?=[^#\n]*\s*\Z)
    | \\f?box(?:ed)?\b\s*(?=\{)
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
"""What announces an answer: a phrase, a heading of its own, GSM8K's "####" on the last line, or a LaTeX box."""

_NAMED = re.compile(r"([^\n.!?:,]{1,80}?)[*_]*\s+is\s+(?:thus\s+|therefore\s+)?the\s+(?:\w+\s+)?answer\b", re.I)
_NEXT_PROBLEM = re.compile(r"\n[\s*#]*(?:question|problem|q|instruction|input|user)\b\s*\d{0,3}[*\s]*(?::|\n)", re.I)
# "The answer is correct." says nothing, "the answer is not 5" next to nothing: an earlier one goes before both.
_NO_ANSWER = re.compile(
    r"[\s*_]*(?:not\b.*|(?:(?:indeed |also |therefore )?(?:correct|incorrect|right|wrong|clear|obvious|unclear|unknown|"
    r"given|found|obtained|determined|calculated|as follows|shown|below|above|(?:the )?same|(?:the )?following)\b"
    r"(?:\s+(?:as|in|by|below|above|here)\b.{0,40})?)?[\s.,:?!*_]*)",
    re.I,
)
_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")
_SENTENCE_END = re.compile(
    r"(?<!\bmr)(?<!\bmrs)(?<!\bdr)(?<!\bst)(?<!\bmt)(?<!\bvs)(?<!\.\w)[.!?]['\"*)]*\s+(?=[\W\d]*[a-z\\])", re.I
)
# Where a reason or an aside begins: "food because plants make it".
_CLAUSE_END = re.compile(r"[,;]?\s+(?:because|since|as|so|which|where|for the reason)\b|\s[-–—]\s|;\s", re.I)


@dataclass(frozen=True)
class _Found:
    """The stretch of text that holds the answer.

    `marked`: a marker announces it, so that what is not the reference there is wrong. Not so for "the answer is clear",
    which stands behind a marker and may mean anything.
    """

    said: str
    marked: bool
    after_marker: bool

    def line(self) -> str:
        return self.said.split("\n", 1)[0]

    def sentence(self) -> str:
        return _SENTENCE_END.split(self.line(), maxsplit=1)[0]

    def readings(self) -> list[str]:
        """Where the answer may end, longest first: all that was said, its line, sentence and clause."""
        sentence = self.sentence()
        clause = _CLAUSE_END.split(sentence, maxsplit=1)[0]
        cuts = [self.said, self.line(), sentence]
        return [*cuts, clause] if _trim(clause) and kind_of(_trim(sentence)) is Kind.TEXT else cuts


def _find(text: str) -> _Found | None:
    text = _SPECIAL.sub(" ", text[-20_000:]).strip()
    follow_up = _NEXT_PROBLEM.search(text)
    if follow_up and text[: follow_up.start()].strip():
        text = text[: follow_up.start()].rstrip()  # the model went on to a problem of its own
    markers = list(_MARKER.finditer(text))[-20:]
    said = [_behind(text, marker) for marker in markers]
    if said and said[-1] is None:
        return None  # cut off behind its marker
    announced = [part for part in said if part and not _NO_ANSWER.fullmatch(part.split("\n", 1)[0])]
    if announced:
        return _Found(announced[-1], marked=True, after_marker=True)
    if said and said[-1]:
        return _Found(said[-1], marked=False, after_marker=True)
    named = None if markers else _last(_NAMED, text)
    if named:
        return _Found(re.sub(r"^\W*(?:so|thus|therefore|hence|then)\b\W*", "", named[1], flags=re.I), False, False)
    return _Found(text, False, False) if text and not markers and "\n" not in text else None


def _behind(text: str, marker: re.Match[str]) -> str | None:
    """What follows a marker: "" if another marker does, None if the text ends there."""
    rest = text[marker.end() :]
    if "box" in marker[0].lower():
        return _in_braces(rest)
    rest = rest.lstrip(" \t\n*_:=")
    if not rest.strip(_ENDS + "\\{"):
        return None
    display = re.match(r"(?:\$\$|\\\[)(.*?)(?:\$\$|\\\])", rest, re.S)
    if display:
        return " ".join(display[1].split())
    boxed = _last(re.compile(r"\\f?box(?:ed)?\s*(?=\{)"), rest)
    if boxed:
        return ""  # the box is a marker of its own
    return rest


def _is_bare_answer(answer: str, kind: Kind) -> bool:
    """Whether a response without a marker is nothing but an answer: no free text, and no line of reckoning."""
    reckoning = kind is Kind.MATHS and not re.fullmatch(r"(?:[a-z]\s*=)?[^=]+", answer)
    return kind is not Kind.TEXT and not reckoning


def _in_braces(rest: str) -> str | None:
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[rest.index("{") + 1 : i].strip() or None
    return None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(text))), None)


def _trim(text: str) -> str:
    """`text` without markup, quotes and a full stop around it. Brackets stay: (3, 4) and (B) mean something."""
    text = text.strip(" \t\n*_`'\"“”‘’#")
    for left, right in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        bare = text.rstrip(".")
        if len(bare) > len(left + right) and bare.startswith(left) and bare.endswith(right):
            text = bare[len(left) : -len(right)]
    text = re.sub(r"(?<=[^.\s])[.,;:!]$", "", text.strip(" \t\n*_`'\"“”‘’")).strip(" *_`'\"“”‘’")
    return re.sub(r"^\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}$", r"\1", text).strip()


# ---- what: one comparison a kind. True, False, or None where the answer cannot be read

_OPTION_ALONE = re.compile(r"\(?\s*[A-Ja-j]\s*\)|[A-J]")
_OPTION = re.compile(
    r"(?:(?i:option|choice|letter|answer)\s*[:#]?\s*)?[*_]*"
    r"(?:\(\s*([A-Ja-j])\s*\)|([A-Ja-j])(?:[):]|\.(?=\s|$)|[*_]+|$)|([B-HJ])\b)"
)
_WITH_UNIT = re.compile(r"\W{0,3}\d[\d.,]*\s?(?:[^\W\d]+[ /.]*){1,3}")
_YES = {"yes": True, "true": True, "no": False, "false": False}


def _same_option(gold: str, readings: list[str], marked: bool) -> bool | None:
    letters = {_option(reading, marked) for reading in readings} - {None}
    if len(letters) != 1:
        return None
    return letters == {re.sub(r"\W", "", gold).upper()}


def _option(reading: str, marked: bool) -> str | None:
    found = _OPTION.match(reading)
    if not found or (found[3] and not marked):
        return None
    rest = reading[found.end() :]
    if re.match(r"\W*(?:and|or|,|/|&)\W*\(?[A-J]\b", rest) or re.search(r"\bor\b", rest[:4]):
        return None
    return next(letter for letter in found.groups() if letter).upper()


def _same_number(gold: str, readings: list[str], marked: bool) -> bool | None:
    expected = whole_number(gold)
    assert expected is not None
    for reading in reversed(readings):
        found = _number(reading, marked)
        if found is not None:
            return same_quantity(expected, found)
    maths = readings[-1]
    several = re.search(r"\b(?:and|or)\b|[,;<>≤≥]", maths)
    return same_expression(gold, maths) if marked and is_expression(maths) and not several else None


def _number(reading: str, marked: bool) -> Quantity | None:
    return whole_number(reading) or (stated_number(reading) if marked or _WITH_UNIT.fullmatch(reading) else None)


def _same_maths(gold: str, readings: list[str], marked: bool) -> bool | None:
    if not marked and not _is_bare_answer(readings[-1], kind_of(readings[-1])):
        return None
    for reading in dict.fromkeys([*reversed(readings), *_inline(readings[-1])]):
        if "".join(gold.casefold().split()) == "".join(reading.casefold().split()):
            return True
        if is_expression(reading) or whole_number(reading):
            same = same_expression(gold, reading)
            if same is not None:
                return same
    return None


def _inline(reading: str) -> list[str]:
    """The formula of a sentence that holds just one."""
    formulas = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", reading)
    return [a or b for a, b in formulas] if len(formulas) == 1 else []


def _same_text(gold: str, readings: list[str], marked: bool) -> bool | None:
    expected = normalise(gold)
    given = [normalise(_OPTION_LABEL.sub("", reading)) for reading in readings]
    if expected in given or _squeeze(expected) in map(_squeeze, given):
        return True
    if expected in _YES:
        first = re.match(r"\w+", given[-1])
        return _YES[first[0]] == _YES[expected] if first and first[0] in _YES else None
    unlabelled = normalise(_OPTION_LABEL.sub("", gold))
    if unlabelled != expected and unlabelled in given:
        return True
    amount, figure = stated_number(gold), whole_number(readings[-1])
    if amount and figure:
        return same_quantity(amount, figure)
    cut_off = any(expected.startswith(reading) for reading in given)
    continued = re.match(re.escape(expected) + r"\s*[,;:(\-.]", given[0])
    if not marked or cut_off or _OPTION_ALONE.fullmatch(readings[-1]):
        return None
    return continued is not None


_OPTION_LABEL = re.compile(r"^(?:option\s+)?\(?[A-Ja-j][).:]\s+(?=\S)", re.I)


def _squeeze(text: str) -> str:
    return re.sub(r"(?<=\d)\s+(?=[^\W\d])", "", text)


_COMPARE = {
    Kind.OPTION: _same_option,
    Kind.NUMBER: _same_number,
    Kind.MATHS: _same_maths,
    Kind.TEXT: _same_text,
}
