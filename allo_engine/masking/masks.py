"""A mask on disk: for every weight of a model, as it is stored, a bit an entry (safetensors of uint8)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import reduce
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from allo_engine.checkpoints.names import Names
from allo_engine.checkpoints.writing import header_bytes
from allo_engine.masking.selection import Source, Threshold, masks, ones, positions
from allo_engine.ranks import here
from allo_engine.report import StageError, Tick

Positions = dict[str, NDArray[np.int64]]
"""Ascending flat positions in each stored weight, by its name."""

Counts = dict[str, int]
"""What is counted of a tensor: its `weights`, and how many of them each use's mask takes."""


def begin_mask(path: Path, sizes: Mapping[str, int]) -> BinaryIO:
    """A mask file with its header: what is missing are the bits of each weight, in the order of `sizes`.

    For masks that should not be in memory as a whole.
    """
    bytes_of = {name: (size + 7) // 8 for name, size in sizes.items()}
    stream = path.open("wb")
    stream.write(header_bytes({name: ("U8", [count], count) for name, count in bytes_of.items()}, {}))
    return stream


def positions_of(path: Path, sizes: Mapping[str, int]) -> Positions:
    """The flat positions that a mask selects in each stored weight of a model, whose entries `sizes` counts."""
    found = {}
    for name, bits in load_file(path).items():
        if name not in sizes or len(bits) != (sizes[name] + 7) // 8:
            raise StageError("wrong_base", f"The mask was made for another model: weight {name} does not fit.")
        found[name] = positions(bits, sizes[name])
    return found


class GivenMask:
    """The mask of a `use` in the folder that a stage's inputs call "masks"; one that trains all weights has none."""

    def __init__(self, inputs: Mapping[str, Path], use: str) -> None:
        self._inputs, self._use = inputs, use

    @property
    def _path(self) -> Path:
        return self._inputs["masks"] / f"{self._use}.safetensors"

    @property
    def ratio(self) -> float:
        """The share of all weights that it takes."""
        kept = load_file(self._path).values()
        return sum(map(ones, kept)) / max(1, 8 * sum(map(len, kept)))

    def __call__(self, _: Callable[[], object], names: Names) -> Positions:
        """Its positions. The model is not asked for: it is the one that the mask was made for."""
        return positions_of(self._path, names.sizes)


def write_masks(
    source: Source, ranks: Mapping[str, int], found: Mapping[int, Threshold], folder: Path, tick: Tick
) -> tuple[dict[str, Counts], int]:
    """Write the masks <use>.safetensors, each of its rank's number of weights, the most important ones.

    What each takes of each tensor, and how many weights are in all masks. Of several processes the first writes.
    """
    rows = {name: {"weights": size, **dict.fromkeys(ranks, 0)} for name, size in source.sizes.items()}
    shared = 0
    paths = {rank: folder / f"{use}.safetensors" for use, rank in ranks.items()}  # equal ranks: one file
    writing = here().leads
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:
        streams = {rank: files.enter_context(begin_mask(path, source.sizes)) for rank, path in paths.items() if writing}
        for piece, bits in masks(source, found, tick):
            for rank, stream in streams.items():
                stream.write(bits[rank].data)
            for use, rank in ranks.items():
                rows[piece.name][use] += ones(bits[rank])
            shared += ones(reduce(np.bitwise_and, bits.values()))
    for use, rank in ranks.items():
        if writing and paths[rank].stem != use:
            shutil.copyfile(paths[rank], folder / f"{use}.safetensors")
    return rows, shared
