"""Numbers and maths expressions: read from an answer's text and compared. Free of torch.

Numbers are exact fractions and read here; everything with a symbol in it goes to math-verify, behind a guard, because
sympy evaluates what it is given and a model may well write 9^9^9^9. What is refused counts as unread, never as wrong.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

TOLERANCE = Fraction(1, 10**6)
"""Relative: 0.3333333 is 1/3, 0.33 is not."""

SECONDS = 2
"""Of sympy on one expression, where a signal can stop it: in the main thread. Elsewhere the guard alone bounds it."""

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each expression that it gives up: we return None


@dataclass(frozen=True)
class Quantity:
    """A number. `percent` says that it was written with a per-cent sign: 50 % stands for 50 and for 0.5. One that is
    not `certain` may be something else: 3,14 is a number or two."""

    value: Fraction
    percent: bool = False
    certain: bool = True


def same_quantity(a: Quantity, b: Quantity) -> bool | None:
    """Whole numbers are equal or not, others up to TOLERANCE; a percentage equals both its figure and its value, as
    graders of maths take it. None for two that differ and are not both certainly numbers."""
    readings = [(a.value, b.value)]
    if a.percent != b.percent:
        readings += [(a.value / 100, b.value) if a.percent else (a.value, b.value / 100)]
    if a.value.denominator == b.value.denominator == 1 and a.percent == b.percent:
        return a.value == b.value or (False if a.certain and b.certain else None)
    same = any(abs(x - y) <= TOLERANCE * max(Fraction(1), abs(x), abs(y)) for x, y in readings)
    return same or (False if a.certain and b.certain else None)


# ---- numbers

_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: i for i, word in enumerate(_ONES + _TEENS)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_SPOKEN = re.compile(rf"\b(?:({'|'.join(_TENS)})[- ]({'|'.join(_ONES[1:])})|({'|'.join(_WORDS)}))\b")
_COUNTS = {"a": 1, "an": 1} | {word: number for word, number in _WORDS.items() if 0 < number < 20}
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_PARTS = {"half": 2, "halve": 2, "quarter": 4} | {word: i for i, word in enumerate(_ORDINALS, 1) if i > 2}
_SPOKEN_FRACTION = re.compile(rf"\b({'|'.join(_COUNTS)})[- ]({'|'.join(_PARTS)})s?\b")
_ORDINAL = re.compile(rf"(?:the )?(?:(\d{{1,9}})(?:st|nd|rd|th)|({'|'.join(_ORDINALS)}))")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d])|\d{1,60})(?:\.\d{0,60})?|\.\d{1,60}"
_NUMBER = re.compile(
    rf"(?<![\w.^/])(?P<sign>[-+]|negative\s|minus\s)?\s?(?:(?P<mixed>\d{{1,9}})\s(?=\d+/\d))?(?P<figure>{_DIGITS})"
    rf"(?:e(?P<exponent>[-+]?\d{{1,2}})(?!\w))?(?:\s?/\s?(?P<over>\d{{1,60}})(?![\w.]))?"
    rf"(?:\s?(?P<scale>{'|'.join(_SCALES)})\b)?(?:\s?(?P<percent>%|percent\b|per cent\b))?"
)
_HEDGE = re.compile(r"^(?:about|approximately|around|exactly|only|just|a total of|roughly|≈|~|=)\s*")
_ELSE = re.compile(r"\s*(?:[-+*/^=<>×÷·:]|\\|[x-z]\b|(?:or|to|times|plus|minus|out of|more than|less than)\b)")
_DOUBT = re.compile(r"\b(?:not|n't|never|or|between|least|most|more than|less than|over|under|cannot|can't)\b|n't\b")
_REASON = re.compile(r"[,;]?\s+(?:because|since|so that|which|as)\b")


def whole_number(text: str) -> Quantity | None:
    """The number that `text` is, with nothing beside it but a currency or per-cent sign."""
    plain = _HEDGE.sub("", plain_number_text(text)).strip().rstrip(" .")
    ordinal = _ORDINAL.fullmatch(plain)
    if ordinal:
        return Quantity(Fraction(ordinal[1] or _ORDINALS.index(ordinal[2]) + 1))
    if re.fullmatch(r"-?\d{1,20},(?:\d{1,2}|\d{4,9})", plain):
        return Quantity(Fraction(plain.replace(",", ".")), certain=False)
    plain = _ungrouped(plain)
    found = _NUMBER.match(plain)
    return _quantity(found) if found and not plain[found.end() :].strip(" .") else None


_SPACED = re.compile(r"(-?)(\d{1,3}(?:([ '’])\d{3})(?:\3\d{3})*)((?:[.,]\d+)?)")
_DOTTED = re.compile(r"(-?)(\d{1,3}(?:(\.)\d{3}){2,}|\d{1,3}(?:\.\d{3})+(?=,))((?:,\d+)?)")
_INDIAN = re.compile(r"(-?)(\d{1,2}(?:(,)\d\d)+,\d{3})((?:\.\d+)?)")


def _ungrouped(figure: str) -> str:
    """A figure without the separators that other countries have between thousands: 1 000, 1'000, 1.234,5, 1,00,000."""
    for style in (_SPACED, _DOTTED, _INDIAN):
        found = style.fullmatch(figure)
        if found:
            return found[1] + re.sub(r"\D", "", found[2]) + found[4].replace(",", ".")
    return figure


def stated_number(text: str) -> Quantity | None:
    """The one number that `text` states: "42 apples", "x = 42", "3 * 14 = 42", "he has 42 left".

    None where none is stated, or more than one could be meant ("5 or 6", "5 hours and 30 minutes", "7 - 3").
    """
    plain = re.sub(r"\([^()]*\)", " ", _REASON.split(plain_number_text(text))[0]).strip()
    if _DOUBT.search(plain):
        return None
    if "=" in plain:
        plain = plain.rpartition("=")[2].strip()
    plain = _HEDGE.sub("", plain)
    found = [match for match in _NUMBER.finditer(plain) if not re.match(r"[x-z]\b", plain[match.end() :])]
    if len(found) != 1 or _ELSE.match(plain[found[0].end() :].lower() + " "):
        return None
    return _quantity(found[0])


def plain_number_text(text: str) -> str:
    """`plain_text` without signs of currencies and degrees."""
    return re.sub(r"[$€£¥₹°]", "", plain_text(text)).strip()


def plain_text(text: str) -> str:
    """`text` in lower case, with LaTeX, powers of ten and number words written as plain figures."""
    text = re.sub(r"(?<=\d)(?=[¼½¾⅓⅔⅛])", " ", text)
    text = re.sub(r"[⁻⁰¹²³⁴-⁹]+", lambda match: "^" + match[0].translate(_RAISED), text)
    text = unicodedata.normalize("NFKC", text).translate(str.maketrans("−–⁄", "--/"))
    text = re.sub(r"(?<!\d)(\d{0,15})\.(\d{0,9})\\(?:overline|bar)\s*\{(\d{1,9})\}", _repeating, text)
    text = re.sub(r"\\[cdt]?frac\s*(?:\{\s*([-+]?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))", r" \1\2/\3\4", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|boxed)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"\^\s*\{?\\circ\}?", "°", text.replace("\\$", "$"))
    text = re.sub(r"\\\(|\\\)|\\\[|\\\]|\\[,;! ]|[`_{}]|\*\*", "", text.replace("{,}", ","))
    text = text.replace("\\%", "%").lower()
    text = re.sub(r"(?<=\d)\s*(?:[×x*·]|\\times|\\cdot)\s*10\s*\^\s*\(?([-+]?\d{1,2})\)?(?!\d)", r"e\1", text)
    text = re.sub(rf"\s+and (?:an?|one) ({'|'.join(_PARTS)})\b", lambda m: f" 1/{_PARTS[m[1]]}", text)
    text = _SPOKEN_FRACTION.sub(lambda m: f"{_COUNTS[m[1]]}/{_PARTS[m[2]]}", text)
    return _SPOKEN.sub(lambda m: str(sum(_WORDS[word] for word in m.groups() if word)), text).strip()


_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} as the fraction that it is."""
    whole, fixed, period = match.groups()
    nines = Fraction(int(period), 10 ** len(fixed) * (10 ** len(period) - 1))
    value = Fraction(int(whole + fixed or 0), 10 ** len(fixed)) + nines
    return f"{value.numerator}/{value.denominator}"


def _quantity(match: re.Match[str]) -> Quantity | None:
    parts = match.groupdict()
    value = Fraction(parts["figure"].replace(",", "").rstrip(".")) * Fraction(10) ** int(parts["exponent"] or 0)
    if parts["over"]:
        if int(parts["over"]) == 0:
            return None
        value /= int(parts["over"])
    value = (value + int(parts["mixed"] or 0)) * _SCALES.get(parts["scale"] or "", 1)
    negative = (parts["sign"] or "+") != "+"
    return Quantity(-value if negative else value, bool(parts["percent"]))


# ---- expressions

_FUNCTIONS = {"sin", "cos", "tan", "log", "ln", "sqrt", "pi", "exp", "and", "or"}
_EXPRESSION = re.compile(r"[\w\s+\-*/^=<>≤≥().,\[\]{}|!%°×÷·√π∞]+")
_JOINED = re.compile(r"[+\-*/^=<>≤≥(\[{√π∞×÷·]|(?<![\w.])\d+[a-z]\b")
_EXPONENT = re.compile(r"\^\s*(?:\{([^{}^]{1,12})\}|\(([^()^]{1,12})\)|(-?\d{1,4}|\\?\w{1,6}))(?!\s*[\^\w])")
_ENDLESS = re.compile(r"\\(?:sum|prod|int|lim|binom|choose|infty\s*\^)|!\s*!|\)\s*!|\}\s*!|\d{4,}\s*!|\d{41,}")


def is_expression(text: str) -> bool:
    """Whether `text` is written in maths: LaTeX, or symbols joined by operators, and no words."""
    text = re.sub(r"\\(?:text|mathrm)\s*\{[^{}]*\}", "", text)
    if re.search(r"\\[a-zA-Z]", text):
        return not re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}", text)
    words = re.findall(r"[a-zA-Z]+", text)
    wordless = all(len(word) == 1 or word in _FUNCTIONS for word in words)
    return wordless and bool(_EXPRESSION.fullmatch(text)) and bool(_JOINED.search(text))


def same_expression(gold: str, answer: str) -> bool | None:
    """Whether two maths expressions are equal, by math-verify. None where either cannot be read or takes too long."""
    from math_verify import verify
    from math_verify.errors import TimeoutException

    try:
        trees = [_tree(text) for text in (gold, answer)]
        if not all(trees):
            return None
        return bool(verify(*trees, timeout_seconds=_seconds(), raise_on_error=True))
    except (Exception, TimeoutException):  # sympy raises whatever it likes, and its timeout is no Exception
        return None


def is_bounded(text: str) -> bool:
    """Whether evaluating `text` is cheap: short, no towers of powers, no endless sums, no huge factorials."""
    if len(text) > 200 or _ENDLESS.search(text) or text.count("!") > 2 or text.count("\\exp") > 1:
        return False
    exponents = list(_EXPONENT.finditer(text))
    sizes = [int(figure) for match in exponents for figure in re.findall(r"\d+", match[0])]
    symbolic = re.search(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", text) is not None
    return len(exponents) == text.count("^") and prod(max(size, 1) for size in sizes) <= (40 if symbolic else 4000)


def _tree(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    text = re.sub(r"(?<![\w.}^])(\d+)\s*/\s*(\d+)(?=\s*\\|\s+[a-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"√\s*(\d+|[a-z]|\([^()]*\))", r"\\sqrt{\1}", text.replace("**", "^"))
    text = re.sub(r"(?<!\\)\b(sqrt|pi|sin|cos|tan|log|ln)\b", r"\\\1", text.replace("π", "\\pi "))
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = text.strip().strip("$").strip()
    if not text or not is_bounded(text):
        return []
    return list(
        parse(
            f"${text}$",
            extraction_config=[LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=_seconds(),
            raise_on_error=True,
        )
    )


def _seconds() -> int:
    """math-verify stops itself by SIGALRM, which only the main thread may set; 0 means no alarm."""
    return SECONDS if threading.current_thread() is threading.main_thread() else 0
