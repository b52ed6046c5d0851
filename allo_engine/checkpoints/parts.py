"""The part of a model's weights that this process holds: all of each, or of one that is shared out over the ranks (a
DTensor, cut along its first dimension) a run of flat positions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from allo_engine.checkpoints.names import Names, Place
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor, pieces
from allo_engine.ranks import here
from allo_engine.report import StageError


def local_of(weight: Tensor) -> Tensor:
    """What this process holds of a weight, or of its gradient, apart from autograd."""
    return (weight.to_local() if isinstance(weight, DTensor) else weight).detach()


def part_of(weight: Tensor) -> tuple[Tensor, int]:
    """What this process holds of a weight, as a flat view, and the flat position where that begins."""
    first = 0
    if isinstance(weight, DTensor):
        ranks, rows = here(), len(weight)
        first = min(ranks.rank * -(-rows // ranks.size), rows) * (weight.numel() // rows)
    return local_of(weight).view(-1), first


def weights_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's weights, those under parametrizations by the names that they have without."""
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): weight
        for name, weight in model.named_parameters()
    }


@torch.no_grad()
def fill(model: nn.Module, folder: Path, names: Names) -> None:
    """Set what this process holds of a model's weights to what a checkpoint stores, of which no more is read.

    Raises StageError bad_model where the model ties weights that are stored unlike.
    """
    weights = weights_by_name(model)
    if not all(place.weight in weights for place in names.places.values()):
        raise StageError("bad_model", _UNLIKE)
    with Checkpoint(folder) as stored:
        for name, place in names.places.items():
            read_into(*part_of(weights[place.weight]), place, stored.tensors[name])


def read_into(part: Tensor, first: int, place: Place, stored: StoredTensor) -> None:
    """Set the flat positions from `first` on to what of a stored tensor lies there, in the precision of `part`."""
    if place.strides == (1,):
        begin, end = max(first, place.offset), min(first + len(part), place.offset + place.size)
        for start, count in pieces(max(0, end - begin)):
            found = torch.from_numpy(stored.read(begin + start - place.offset, count))
            part[begin + start - first :][:count] = found
        return
    for start, count in pieces(place.size):
        at = place.in_weight(np.arange(start, start + count)) - first
        inside = (at >= 0) & (at < len(part))
        if inside.any():
            values = torch.from_numpy(stored.read(start, count)[inside]).to(part.device, part.dtype)
            part[torch.from_numpy(at[inside]).to(part.device)] = values


_UNLIKE = (
    "The checkpoint stores two embeddings that its configuration ties, and they differ: set tie_word_embeddings to "
    "false in its config.json, or zero to 0."
)
