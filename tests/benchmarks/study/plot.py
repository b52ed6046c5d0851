"""Accuracy over learning rate, an arm a curve, as SVG. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

Curve = Sequence[tuple[float, float]]
"""(rate, accuracy) in order of rate."""

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 600, 24, 392
_COLOURS = ("#1f77b4", "#17becf", "#2ca02c", "#7f7f7f", "#d62728", "#ff7f0e", "#9467bd", "#8c564b")


def plot(curves: Mapping[str, Curve], level: tuple[str, float]) -> str:
    """The curves over a logarithmic rate, with one line for what all of them start from."""
    rates = [rate for curve in curves.values() for rate, _ in curve]
    shares = [share for curve in curves.values() for _, share in curve] + [level[1]]
    left, right = math.log10(min(rates)), math.log10(max(rates))
    low, high = math.floor(20 * min(shares)) / 20, math.ceil(20 * max(shares)) / 20

    def x(rate: float) -> float:
        return _LEFT + (math.log10(rate) - left) / ((right - left) or 1) * (_RIGHT - _LEFT)

    def y(share: float) -> float:
        return _BOTTOM - (share - low) / ((high - low) or 1) * (_BOTTOM - _TOP)

    parts = [*_grid(sorted(set(rates)), x, low, high, y), *_level(level, y(level[1]))]
    for number, (name, curve) in enumerate(curves.items()):
        parts += _curve(name, [(x(rate), y(share)) for rate, share in curve], _COLOURS[number % len(_COLOURS)], number)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _grid(rates: Sequence[float], x: object, low: float, high: float, y: object) -> Iterator[str]:
    assert callable(x)
    assert callable(y)
    for share in (low + number / 20 for number in range(round(20 * (high - low)) + 1)):
        yield f'<path d="M{_LEFT} {y(share):.1f}H{_RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
    for rate in rates:
        yield f'<path d="M{x(rate):.1f} {_TOP}V{_BOTTOM}" stroke="#eee"/>'
        yield f'<text x="{x(rate):.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{rate:g}</text>'
    middle = (_LEFT + _RIGHT) / 2
    yield f'<text x="{middle}" y="{_BOTTOM + 36}" text-anchor="middle">share of right answers over learning rate</text>'


def _level(level: tuple[str, float], y: float) -> Iterator[str]:
    yield f'<path d="M{_LEFT} {y:.1f}H{_RIGHT}" stroke="black" stroke-dasharray="5 4"/>'
    yield f'<text x="{_RIGHT + 6}" y="{y + 4:.1f}">{escape(level[0])}</text>'


def _curve(name: str, points: Sequence[tuple[float, float]], colour: str, number: int) -> Iterator[str]:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    place = _TOP + 16 * (number + 1)
    yield f'<path d="M{_RIGHT + 50} {place - 4}h20" stroke="{colour}" stroke-width="3"/>'
    yield f'<text x="{_RIGHT + 76}" y="{place}">{escape(name)}</text>'
