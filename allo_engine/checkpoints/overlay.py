"""One base model in memory, and over it the values of one sparse checkpoint at a time.

To swap costs what the masked entries cost: the values that lie beneath are kept aside, bit for bit, and put back before
others take their place. So models that share a base share its memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo_engine.checkpoints.delta import read_delta
from allo_engine.checkpoints.names import names_of
from allo_engine.checkpoints.parts import part_of, weights_by_name
from allo_engine.report import StageError

READY = 4
"""Sparse checkpoints that are kept decoded, the ones that were shown last."""


@dataclass(frozen=True)
class Entries:
    """Of one weight: itself as a flat view, flat positions in it [K], what is to stand there [K], and what the base
    has there [K]."""

    part: Tensor
    at: Tensor
    over: Tensor
    beneath: Tensor


class Overlay:
    """What a model that was loaded from the folder `base` shows: that base, or a sparse checkpoint over it."""

    def __init__(self, model: PreTrainedModel, base: Path) -> None:
        self._base, self._names, self._weights = base, names_of(model, base), weights_by_name(model)
        self._ready: OrderedDict[Path, list[Entries]] = OrderedDict()
        self.shown: Path | None = None

    def show(self, delta: Path | None) -> None:
        """Have the model be the one of the sparse checkpoint in this folder; None: the base itself.

        Raises StageError, with the base shown: wrong_base where the delta belongs to another, bad_delta if it is
        damaged.
        """
        if delta == self.shown:
            return
        for entries in self._ready[self.shown] if self.shown else ():
            entries.part.index_copy_(0, entries.at, entries.beneath)
        self.shown = None
        for entries in self._entries(delta) if delta else ():
            entries.part.index_copy_(0, entries.at, entries.over)
        self.shown = delta

    def _entries(self, delta: Path) -> list[Entries]:
        found = self._ready.pop(delta, None) or list(self._decoded(delta))
        self._ready[delta] = found
        if len(self._ready) > READY:
            self._ready.popitem(last=False)
        return found

    def _decoded(self, delta: Path) -> Iterator[Entries]:
        """While the base is shown."""
        for name, (positions, values) in read_delta(delta, self._base).items():
            place = self._names.place(name)
            if place is None or (len(positions) and place.size <= positions[-1]):
                raise StageError("wrong_base", f"The sparse checkpoint's weight {name} does not fit the model.")
            part, _ = part_of(self._weights[place.weight])
            at = torch.from_numpy(place.in_weight(positions)).to(part.device)
            over = torch.from_numpy(values).to(part.device, part.dtype)
            yield Entries(part, at, over, part.index_select(0, at))
