"""One base model in memory, and over it the values of one sparse checkpoint at a time.

To swap costs what the masked entries cost: the values that lie beneath are kept aside, bit for bit, and put back before
others take their place. So models that share a base share its memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo_engine.checkpoints.delta import read_delta
from allo_engine.checkpoints.names import Flat, names_of
from allo_engine.checkpoints.parts import part_of, weights_by_name
from allo_engine.report import StageError

READY = 4
"""Sparse checkpoints that are kept decoded, the ones that were shown last."""


Where = Callable[[str, Flat], Iterable[tuple[Tensor, Flat]]]
"""Where the entries of a stored weight, by its name and their flat positions [K] in it, which ascend, lie in a model:
flat views of weights, each with positions in it; together they are all K, in their order.

Raises StageError wrong_base where the model has no such weight.
"""


def in_model(model: PreTrainedModel, base: Path) -> Where:
    """Where they lie in a model that was loaded from the folder `base`."""
    names, weights = names_of(model, base), weights_by_name(model)

    def where(name: str, positions: Flat) -> Iterator[tuple[Tensor, Flat]]:
        place = names.place(name)
        if place is None or (len(positions) and place.size <= positions[-1]):
            raise does_not_fit(name)
        yield part_of(weights[place.weight])[0], place.in_weight(positions)

    return where


def does_not_fit(name: str) -> StageError:
    """That a model has no place for entries of a stored weight."""
    return StageError("wrong_base", f"The sparse checkpoint's weight {name} does not fit the model.")


@dataclass(frozen=True)
class Entries:
    """Of one weight: itself as a flat view, flat positions in it [K], what is to stand there [K], and what the base
    has there [K]."""

    part: Tensor
    at: Tensor
    over: Tensor
    beneath: Tensor


class Overlay:
    """What a model shows whose weights are those in the folder `base`: them, or a sparse checkpoint over them."""

    def __init__(self, where: Where, base: Path) -> None:
        self._where, self._base = where, base
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
            first = 0
            for part, places in self._where(name, positions):
                at = torch.from_numpy(places).to(part.device)
                over = torch.from_numpy(values[first : first + len(places)]).to(part.device, part.dtype)
                yield Entries(part, at, over, part.index_select(0, at))
                first += len(places)
