"""Figures as people read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

SHOWN = 1200
"""Characters of a text that are shown; whoever wants all of it downloads it."""

_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float | None) -> str:
    """Two units at most: `2 h 5 min`."""
    if seconds is None:
        return "–"
    left = max(round(seconds), 0)
    found: list[str] = []
    for length, name in _SPANS:
        count, left = divmod(left, length)
        if count or found:
            found.append(f"{count} {name}" if count else "")
        if len(found) == 2:
            break
    return " ".join(part for part in found if part) or "0 s"


def moment(at: int | None) -> str:
    """A time as machines read it, for `<time datetime>`; the page's script writes it in its reader's own."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def when(at: int | None) -> str:
    """A time in UTC."""
    return "–" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def size(count: int | None) -> str:
    """Bytes, in the unit that leaves one to three digits before the point."""
    if count is None:
        return "–"
    value, units = float(count), ("B", "kB", "MB", "GB")
    for unit in units:
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def number(value: Any) -> str:
    """A figure in four digits, a count with its thousands apart."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(fraction: float | None) -> str:
    """`42 %`."""
    return "–" if fraction is None else f"{100 * fraction:.0f}\N{NARROW NO-BREAK SPACE}%"


def share(fraction: float) -> str:
    """`4.2 %`, with a digit more where it is small."""
    written = f"{100 * fraction:.1f}" if fraction >= 0.01 or fraction == 0 else f"{100 * fraction:.2g}"
    return f"{written}\N{NARROW NO-BREAK SPACE}%"


def clipped(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


def short(name: str) -> str:
    """A name of which many stand in a list: where it is long, how it begins and how it ends."""
    return name if len(name) <= 60 else f"{name[:40]} … {name[-17:]}"


FILTERS: Mapping[str, Callable[..., str]] = {
    "duration": duration,
    "moment": moment,
    "when": when,
    "size": size,
    "number": number,
    "percent": percent,
    "share": share,
    "clipped": clipped,
}


def setting_value(value: Any) -> str:
    """A setting's value."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
