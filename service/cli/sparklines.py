"""Curves in a line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

CURVES = {
    "loss": "loss",
    "reward_margin": "margin",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens/s",
}
"""A step's figures that are shown, and what they are called."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_MOST = 512
"""Points that are held of a curve; beyond that, each second one goes, and new ones come half as often."""


def sparkline(values: Sequence[float], width: int) -> str:
    """The values from first to last in at most `width` blocks, each the mean of its part: the lowest block is the
    least. A part that has no finite value is blank."""
    parts = min(width, len(values))
    means = [_mean(values[place * len(values) // parts : (place + 1) * len(values) // parts]) for place in range(parts)]
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return " " * parts
    low, span = min(finite), max(finite) / 2 - min(finite) / 2  # halves: the span of two finite floats may be none
    top = len(_BLOCKS) - 1
    return "".join(" " if x is None else _BLOCKS[round((x / 2 - low / 2) / span * top) if span else 0] for x in means)


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(value / len(finite) for value in finite) if finite else None


class Curves:
    """The figures of a job's stage under way, told by its events of metrics. A step that runs again after a break
    counts once, as it last was."""

    def __init__(self) -> None:
        self.stage = ""
        self._points: dict[str, list[tuple[int, float]]] = {}
        self._gaps: dict[str, float] = {}

    def tell(self, data: Mapping[str, Any]) -> None:
        stage, step = data.get("stage"), data.get("step")
        if not isinstance(stage, str) or not isinstance(step, int):
            return
        if stage != self.stage:
            self.stage, self._points, self._gaps = stage, {}, {}
        for name in CURVES:
            if isinstance(value := data.get(name), int | float):
                self._add(name, step, float(value))

    def _add(self, name: str, step: int, value: float) -> None:
        points = self._points.setdefault(name, [])
        while points and points[-1][0] >= step:
            points.pop()
        if len(points) > 1 and step - points[-2][0] < self._gaps.get(name, 0):
            points.pop()
        points.append((step, value))
        if len(points) > _MOST:
            self._gaps[name] = 2 * (step - points[0][0]) / _MOST
            del points[1::2]

    def lines(self, width: int) -> list[tuple[str, str, str]]:
        """Each curve that has begun: its name, the curve, its last value."""
        return [
            (CURVES[name], sparkline([value for _, value in points], width), f"{points[-1][1]:.4g}")
            for name in CURVES
            if len(points := self._points.get(name, [])) > 1
        ]
