"""Figures of a training: on the device while a step runs, read in one transfer when it is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Figures = Mapping[str, tuple[Tensor, float]]
"""Figures to report, each as (sum, count). The sum is a scalar on its device: to read it is to wait for it."""


@dataclass
class Totals:
    """Figures summed over groups: each a (sum, count)."""

    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, name: str, total: float, count: float) -> None:
        self.sums[name][0] += total
        self.sums[name][1] += count

    def include(self, other: Totals) -> None:
        for name, (total, count) in other.sums.items():
            self.add(name, total, count)

    @classmethod
    def of(cls, parts: Iterable[Mapping[str, list[float]]]) -> Totals:
        """The sums of all parts together."""
        found = cls()
        for sums in parts:
            found.include(cls(dict(sums)))
        return found

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items() if count}


class Readings:
    """Figures of one step that were not read yet."""

    def __init__(self) -> None:
        self._names: list[tuple[str, float]] = []
        self._sums: list[Tensor] = []

    def add(self, figures: Figures) -> None:
        for name, (total, count) in figures.items():
            self._names.append((name, count))
            self._sums.append(total.detach())

    def read(self) -> Totals:
        """Wait for the device, once, and add up on the host, in double precision."""
        found = Totals()
        sums = torch.stack(self._sums).tolist() if self._sums else []
        for (name, count), total in zip(self._names, sums, strict=True):
            found.add(name, total, count)
        return found
