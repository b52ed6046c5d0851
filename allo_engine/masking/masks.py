"""A mask on disk: for every weight of a model, by name, a bit an entry (safetensors of uint8)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

from allo_engine.checkpoints.writing import header_bytes
from allo_engine.masking.selection import positions
from allo_engine.report import StageError

Positions = dict[str, NDArray[np.int64]]
"""Ascending flat positions in each weight, by its name."""


def begin_mask(path: Path, sizes: Mapping[str, int]) -> BinaryIO:
    """A mask file with its header: what is missing are the bits of each weight, in the order of `sizes`.

    For masks that should not be in memory as a whole.
    """
    bytes_of = {name: (size + 7) // 8 for name, size in sizes.items()}
    stream = path.open("wb")
    stream.write(header_bytes({name: ("U8", [count], count) for name, count in bytes_of.items()}, {}))
    return stream


def positions_of(path: Path, model: nn.Module) -> Positions:
    """The flat positions that a mask selects in each weight of a model."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    found = {}
    for name, bits in load_file(path).items():
        if name not in sizes or len(bits) != (sizes[name] + 7) // 8:
            raise StageError("wrong_base", f"The mask was made for another model: weight {name} does not fit.")
        found[name] = positions(bits, sizes[name])
    return found
