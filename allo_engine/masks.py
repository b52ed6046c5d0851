"""A mask on disk: for every weight of a model, by name, a bit an entry (safetensors of uint8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

from allo_engine.report import StageError
from allo_engine.selection import positions

Positions = dict[str, NDArray[np.int64]]
"""Ascending flat positions in each weight, by its name."""


def positions_of(path: Path, model: nn.Module) -> Positions:
    """The flat positions that a mask selects in each weight of a model."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    found = {}
    for name, bits in load_file(path).items():
        if name not in sizes or len(bits) != (sizes[name] + 7) // 8:
            raise StageError("wrong_base", f"The mask was made for another model: weight {name} does not fit.")
        found[name] = positions(bits, sizes[name])
    return found


def union(first: Positions, second: Positions) -> Positions:
    return {name: np.union1d(first.get(name, _NONE), second.get(name, _NONE)) for name in first.keys() | second.keys()}


_NONE = np.zeros(0, dtype=np.int64)
