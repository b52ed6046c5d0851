"""Where a mask lies, as a grid of layers and modules that is small enough to be looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from service.jobs.learned import Layers
from service.pages.charts import Cell, Grid

OUTSIDE = "outside the layers"
"""What the engine calls the place of whatever is in no layer."""

MOST_CELLS = 600
"""Of a grid. Of a model with more, layers that follow one another are one row."""

Sums = dict[str, tuple[float, int]]
"""Module → how many weights are taken, and of how many."""


def grid_of(layers: Layers, use: str) -> Grid:
    """The layers, each with the share of each of its modules that the mask of a use takes. Experts and whatever else is
    numbered within a layer are one module."""
    rows = [(name, _summed([found], use)) for name, found in layers.items() if name != OUTSIDE]
    columns = list(dict.fromkeys(module for _, sums in rows for module in sums))
    together = max(1, -(-len(rows) * len(columns) // MOST_CELLS))
    bands = list(_banded(rows, together))
    cells = [[_cell(sums, column) for column in columns] for _, sums in bands]
    return Grid([name for name, _ in bands], columns, cells)


def outside_of(layers: Layers, use: str) -> list[tuple[str, Cell]]:
    """What is in no layer: embeddings, the last norm, the head."""
    sums = _summed([layers.get(OUTSIDE, {})], use)
    return [(module, Cell(taken / of, of)) for module, (taken, of) in sums.items() if of]


def _banded(rows: Sequence[tuple[str, Sums]], together: int) -> Iterator[tuple[str, Sums]]:
    """So many layers that follow one another as one, named by the first and the last."""
    prefixes = {_parted(name)[0] for name, _ in rows}
    for prefix, group in groupby(rows, key=lambda row: _parted(row[0])[0]):
        found = list(group)
        shown = f"{prefix.rpartition('.')[2]} " if len(prefixes) > 1 else ""
        for start in range(0, len(found), together):
            band = found[start : start + together]
            first, last = (_parted(name)[1] for name, _ in (band[0], band[-1]))
            yield f"{shown}{first}" if first == last else f"{shown}{first}–{last}", _added(sums for _, sums in band)


def _parted(layer: str) -> tuple[str, str]:
    """`model.layers.7` → (`model.layers`, `7`)."""
    prefix, _, number = layer.rpartition(".")
    return prefix, number


def _summed(modules: Sequence[Mapping[str, Mapping[str, float]]], use: str) -> Sums:
    return _added(
        {re.sub(r"\.\d+(?=\.|$)", ".*", name): (row[use] * row["weights"], int(row["weights"]))}
        for found in modules
        for name, row in found.items()
    )


def _added(parts: Iterator[Sums]) -> Sums:
    total: Sums = {}
    for part in parts:
        for name, (taken, of) in part.items():
            before = total.get(name, (0.0, 0))
            total[name] = (before[0] + taken, before[1] + of)
    return total


def _cell(sums: Sums, column: str) -> Cell | None:
    taken, of = sums.get(column, (0.0, 0))
    return Cell(taken / of, of) if of else None
