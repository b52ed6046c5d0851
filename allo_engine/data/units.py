"""Amounts with a unit: "5 km", "1 hour 30 minutes", "$2.50". Free of torch.

A unit is a dimension and a factor to that dimension's base, so that 5 km = 5000 m, and 5 kg is no length at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from allo_engine.data.quantities import Quantity, plain_text, stated_number, whole_number


@dataclass(frozen=True)
class Amount:
    """`value` in the base unit of `dimension`; `figure` is the number as it was written, None where there are two."""

    value: Fraction
    dimension: str
    figure: Fraction | None


@dataclass(frozen=True)
class _Unit:
    dimension: str
    factor: Fraction
    offset: Fraction = Fraction(0)


def _table() -> dict[str, _Unit]:
    """Every name of a unit. Names that mean two things (pound, m of "5 m" as million) mean the one that units do."""
    named = [
        ("length", "1", "m meter meters metre metres"),
        ("length", "1000", "km kilometer kilometers kilometre kilometres"),
        ("length", "0.01", "cm centimeter centimeters centimetre centimetres"),
        ("length", "0.001", "mm millimeter millimeters millimetre millimetres"),
        ("length", "1609.344", "mi mile miles"),
        ("length", "0.9144", "yd yard yards"),
        ("length", "0.3048", "ft foot feet"),
        ("length", "0.0254", "in inch inches"),
        ("mass", "1", "g gram grams"),
        ("mass", "1000", "kg kilogram kilograms kilo kilos"),
        ("mass", "0.001", "mg milligram milligrams"),
        ("mass", "453.59237", "lb lbs pound pounds"),
        ("mass", "28.349523125", "oz ounce ounces"),
        ("volume", "1", "l liter liters litre litres"),
        ("volume", "0.001", "ml milliliter milliliters millilitre millilitres"),
        ("time", "1", "s sec secs second seconds"),
        ("time", "60", "min mins minute minutes"),
        ("time", "3600", "h hr hrs hour hours"),
        ("time", "86400", "day days"),
        ("time", "604800", "week weeks"),
        ("months", "1", "month months"),
        ("months", "12", "year years yr yrs"),
        ("angle", "1", "° degree degrees deg"),
        ("temperature", "1", "°c celsius"),
        ("usd", "1", "$ usd dollar dollars"),
        ("usd", "0.01", "¢ cent cents"),
        ("eur", "1", "€ eur euro euros"),
        ("gbp", "1", "£ gbp"),
        ("inr", "1", "₹ inr rupee rupees"),
        ("jpy", "1", "¥ jpy yen"),
    ]
    found = {name: _Unit(kind, Fraction(factor)) for kind, factor, names in named for name in names.split()}
    celsius, fahrenheit = found["°c"], _Unit("temperature", Fraction(5, 9), Fraction(-160, 9))
    found |= {"degree celsius": celsius, "degrees celsius": celsius, "° celsius": celsius}
    found |= dict.fromkeys(("°f", "fahrenheit", "degrees fahrenheit", "° fahrenheit"), fahrenheit)
    speeds = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmh": ("km", "h")}
    return found | {name: _per(found[a], found[b]) for name, (a, b) in speeds.items()}


def _per(above: _Unit, below: _Unit) -> _Unit:
    return _Unit(f"{above.dimension}/{below.dimension}", above.factor / below.factor)


_UNITS = _table()


def unit_of(text: str) -> _Unit | None:
    """The unit that `text` names: "km", "square feet", "cm^3", "miles per hour"."""
    text = " ".join(text.strip(" .").split())
    over = re.split(r"\s*/\s*|\s+per\s+(?:an?\s+)?", text)
    if len(over) == 2:
        above, below = map(unit_of, over)
        return _per(above, below) if above and below else None
    if text in _UNITS:
        return _UNITS[text]
    power = re.fullmatch(r"(?:(square|sq\.?|cubic|cu\.?)\s+)?([^\W\d]+?)\s?(?:\^?([23]))?", text)
    if not power or power[2] not in _UNITS or bool(power[1]) == bool(power[3]):
        return None
    exponent = int(power[3] or (2 if power[1].startswith("s") else 3))
    unit = _UNITS[power[2]]
    return _Unit(f"{unit.dimension}^{exponent}", unit.factor**exponent)


def amount(text: str) -> Amount | None:
    """The amount that `text` is, with nothing beside it: a figure with its unit, or several that add up."""
    plain = _ABOUT.sub("", " ".join(plain_text(text).split())).strip(" .")
    signed = _SIGNED.fullmatch(plain)
    if signed:
        figures, names = [(signed[1] or "") + (signed[3] or signed[4])], [signed[2] or signed[5]]
    else:
        pieces = [piece for piece in re.split(r"\s*,?\s+and\s+|,\s+|(?<=[a-z])\s+(?=\d)", plain) if piece]
        matches = [match for piece in pieces if (match := _PART.fullmatch(piece))]
        if len(matches) < len(pieces):
            return None
        figures, names = [match[1] for match in matches], [match[2] for match in matches]
    return _sum([whole_number(figure) for figure in figures], [unit_of(name) for name in names])


def stated_amount(text: str) -> Amount | None:
    """The one amount that a sentence states: "he ran 5 km in all". None where it has another number too."""
    if stated_number(text) is None:
        return None
    words = plain_text(text).split()
    first = next((place for place, word in enumerate(words) if any(letter.isdigit() for letter in word)), 0)
    found = (amount(" ".join(words[first : first + length])) for length in (4, 3, 2, 1))
    return next((one for one in found if one), None)


def _sum(numbers: list[Quantity | None], units: list[_Unit | None]) -> Amount | None:
    """What the numbers of units are together; None unless each is a smaller unit of the same thing."""
    parts = [(number.value, unit) for number, unit in zip(numbers, units, strict=True) if number and unit]
    falling = all(
        a.dimension == b.dimension and a.factor > b.factor and not a.offset for (_, a), (_, b) in pairwise(parts)
    )
    if not parts or len(parts) < len(units) or not falling:
        return None
    total = sum((unit.offset + value * unit.factor for value, unit in parts), Fraction(0))
    return Amount(total, parts[0][1].dimension, parts[0][0] if len(parts) == 1 else None)


_FIGURE = (
    r"[-+]?\d[\d,]{0,60}(?:\.\d{1,60})?(?:\s?/\s?\d{1,60})?(?:\s\d{1,9}/\d{1,9})?(?:\s(?:thousand|million|billion)\b)?"
)
_PART = re.compile(rf"({_FIGURE})[\s-]?((?:[^\W\d]|[°¢/])[^\d,;:=]{{0,60}}(?:[23](?![\d.]))?)")
_SIGNED = re.compile(rf"(-?)\s?([$€£₹¥]|usd|eur|gbp)\s?({_FIGURE})|({_FIGURE})\s?([$€£₹¥])")
_ABOUT = re.compile(r"^(?:about|approximately|around|exactly|only|just|a total of|roughly|≈|~|=)\s*")
