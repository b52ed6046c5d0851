"""Where a response says its answer: behind a marker, before "is the answer", or nowhere. Free of torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from allo_engine.data.parsing import parse
from allo_engine.data.values import ENDS, Text

_MARKER = re.compile(
    r"""
      \b(?:final\s+|correct\s+|right\s+|best\s+)*(?:answer|ans)\b (?!\s+(?:key|sheet)\b)
      (?: (?:\s+(?:choice|option|to|for|of|here|then|therefore)\b [^\n.:=?]{0,60}?)?
          (?:,\s*(?:therefore|then|thus|hence|so),?)?
          [*_\s]* (?: (?:is|are|was|would\s+be|must\s+be|should\s+be)\b(?:\s*[:=])? | [:=] )
        | [*_\s]*\n )
    | \b(?:correct|right|best)\s+(?:option|choice)\s+is\b[\s:]*(?=[*_]*\(?[A-J]\b)
    | ^\s*\#{4}(?=[^#\n]*\s*\Z)
    | \\f?box(?:ed)?\b\s*(?=\{)
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
"""What announces an answer: a phrase, a heading of its own, GSM8K's "####" on the last line, or a LaTeX box."""

_NAMED = re.compile(r"([^\n.!?:,]{1,80}?)[*_]*\s+is\s+(?:thus\s+|therefore\s+)?the\s+(?:\w+\s+)?answer\b", re.I)
_CHOSEN = re.compile(r"\b(?:option|choice)\s+(\(?[A-J]\)?)\s+is\s+(?:correct|right)\b", re.I)
_BOXES = re.compile(r"(\\boxed\s*\{[^{}]*)\}\$?\s*(?:,\s*(?:and\s+)?|and\s+|or\s+)\$?\\boxed\s*\{([^{}]*\})")
_NEXT_PROBLEM = re.compile(r"\n[\s*#]*(?:question|problem|q|instruction|input|user)\b\s*\d{0,3}[*\s]*(?::|\n)", re.I)
# "The answer is correct." says nothing, "the answer is not 5" next to nothing: an earlier one goes before both.
_NO_ANSWER = re.compile(
    r"[\s*_]*(?:not\b.*|(?:(?:indeed |also |therefore )?(?:correct|incorrect|right|wrong|clear|obvious|unclear|unknown|"
    r"given|found|obtained|determined|calculated|as follows|shown|below|above|(?:the )?same|(?:the )?following)\b"
    r"(?:\s+(?:as|in|by|below|above|here)\b.{0,40})?)?[\s.,:?!*_]*)",
    re.I,
)
_SPECIAL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>")
_BLANKS = re.compile(r"\s{3,}")
_SENTENCE_END = re.compile(
    r"(?<!\bmr)(?<!\bmrs)(?<!\bdr)(?<!\bst)(?<!\bmt)(?<!\bvs)(?<!\.\w)[.!?]['\"*)]*\s+(?=[\W\d]*[a-z\\])", re.I
)
# Where a reason or an aside begins: "food because plants make it".
_CLAUSE_END = re.compile(r"[,;]?\s+(?:because|since|as|so|which|where|for the reason)\b|\s[-–—]\s|;\s", re.I)


@dataclass(frozen=True)
class Found:
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
        return [*cuts, clause] if trim(clause) and isinstance(parse(trim(sentence)), Text) else cuts


def _narrowed(blanks: re.Match[str]) -> str:
    """Long blanks shortened: patterns that begin with any number of them take the square of that to find nothing."""
    return "\n\n" if blanks[0].count("\n") > 1 else "\n" if "\n" in blanks[0] else " "


def find(text: str) -> Found | None:
    text = _BLANKS.sub(_narrowed, _SPECIAL.sub(" ", text[-20_000:])).strip()
    follow_up = _NEXT_PROBLEM.search(text)
    if follow_up and text[: follow_up.start()].strip():
        text = text[: follow_up.start()].rstrip()  # the model went on to a problem of its own
    while _BOXES.search(text):
        text = _BOXES.sub(r"\1, \2", text)
    markers = list(_MARKER.finditer(text))[-20:]
    said = [_behind(text, marker) for marker in markers]
    if said and said[-1] is None:
        return None  # cut off behind its marker
    announced = [part for part in said if part and not _NO_ANSWER.fullmatch(part.split("\n", 1)[0])]
    if announced:
        return Found(announced[-1], marked=True, after_marker=True)
    if said and said[-1]:
        return Found(said[-1], marked=False, after_marker=True)
    named = None if markers else _last(_NAMED, text) or _last(_CHOSEN, text)
    if named:
        return Found(re.sub(r"^\W*(?:so|thus|therefore|hence|then)\b\W*", "", named[1], flags=re.I), False, False)
    return Found(text, False, False) if text and not markers and "\n" not in text else None


def _behind(text: str, marker: re.Match[str]) -> str | None:
    """What follows a marker: "" if another marker does, None if the text ends there."""
    rest = text[marker.end() :]
    if "box" in marker[0].lower():
        return _in_braces(rest)
    rest = rest.lstrip(" \t\n*_:=")
    if not rest.strip(ENDS + "\\{"):
        return None
    display = re.match(r"(?:\$\$|\\\[)(.*?)(?:\$\$|\\\])", rest, re.S)
    if display:
        return " ".join(display[1].split())
    boxed = _last(re.compile(r"\\f?box(?:ed)?\s*(?=\{)"), rest)
    if boxed:
        return ""  # the box is a marker of its own
    return rest


def _in_braces(rest: str) -> str | None:
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[rest.index("{") + 1 : i].strip() or None
    return None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(text))), None)


def trim(text: str) -> str:
    """`text` without markup, quotes and a full stop around it. Brackets stay: (3, 4) and (B) mean something."""
    text = _BLANKS.sub(_narrowed, text).strip(" \t\n*_`'\"“”‘’#")
    for left, right in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        bare = text.rstrip(".")
        if len(bare) > len(left + right) and bare.startswith(left) and bare.endswith(right):
            text = bare[len(left) : -len(right)]
    text = re.sub(r"(?<=[^.\s])[.,;:!]$", "", text.strip(" \t\n*_`'\"“”‘’")).strip(" *_`'\"“”‘’")
    return re.sub(r"^\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}$", r"\1", text).strip()
