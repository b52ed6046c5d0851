"""Masked entries beside a model: their places in each stored weight, and their float32 values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from allo_engine.checkpoints.delta import Entries, Values
from allo_engine.checkpoints.reading import Checkpoint
from allo_engine.masking.masks import Positions
from allo_engine.report import StageError


def stored_values(folder: Path, positions: Positions) -> Values:
    """What a checkpoint holds at the positions, in float32 whatever a model of it computes in.

    Raises StageError where it has no such weight.
    """
    with Checkpoint(folder) as checkpoint:
        unknown = sorted(set(positions) - set(checkpoint.tensors))
        if unknown:
            raise StageError("bad_mask", f"The mask names weights that the model does not have: {unknown[0]}.")
        return {
            name: (places, checkpoint.tensors[name].read(0, checkpoint.tensors[name].size)[places])
            for name, places in positions.items()
        }


def scaled(values: Values, folder: Path, factor: float, over: Values) -> Values:
    """start + factor·(value − start) of each entry, in float32, `start` being what a checkpoint holds there with the
    entries `over` on top."""
    if factor == 1:
        return values
    positions = {name: places for name, (places, _) in values.items()}
    start = within(overlay(stored_values(folder, positions), over), positions)
    return {
        name: (places, start[name][1] + np.float32(factor) * (found - start[name][1]))
        for name, (places, found) in values.items()
    }


def overlay(under: Values, over: Values) -> Values:
    """The entries of both; where both have one, that of `over`."""
    return {name: _overlay(under.get(name, _NONE), over.get(name, _NONE)) for name in under.keys() | over.keys()}


def _overlay(under: Entries, over: Entries) -> Entries:
    kept = ~np.isin(under[0], over[0], assume_unique=True)
    places = np.concatenate([under[0][kept], over[0]])
    values = np.concatenate([under[1][kept], over[1]])
    order = np.argsort(places)
    return places[order], values[order]


def within(values: Values, positions: Positions) -> Values:
    """The entries at the positions; every position has one."""
    return {
        name: (places, values[name][1][np.searchsorted(values[name][0], places)])
        for name, places in positions.items()
        if len(places)
    }


_NONE: Entries = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
