"""One base model in memory, and over it the values of one sparse checkpoint at a time.

To swap costs what the masked entries cost: the values that lie beneath are kept aside, bit for bit, and put back before
others take their place. So models that share a base share its memory.
"""

from __future__ import annotations

from collections import OrderedDict
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

Layer = list[tuple[Tensor, Tensor, Tensor]]
"""Of each weight: itself as a flat view, flat positions in it [K], and what is to stand there [K]."""


class Overlay:
    """What a model that was loaded from the folder `base` shows: that base, or a sparse checkpoint over it."""

    def __init__(self, model: PreTrainedModel, base: Path) -> None:
        self._base, self._names, self._weights = base, names_of(model, base), weights_by_name(model)
        self._ready: OrderedDict[Path, Layer] = OrderedDict()
        self._beneath: Layer = []
        self.shown: Path | None = None

    def show(self, delta: Path | None) -> None:
        """Have the model be the one of the sparse checkpoint in this folder; None: the base itself.

        Raises StageError, with the model as it was: wrong_base where the delta belongs to another base, bad_delta if it
        is damaged.
        """
        if delta == self.shown:
            return
        layer = [] if delta is None else self._layer(delta)
        _write(self._beneath)
        self._beneath = [(part, at, part[at]) for part, at, _ in layer]
        _write(layer)
        self.shown = delta

    def _layer(self, delta: Path) -> Layer:
        layer = self._ready.pop(delta, None) or self._decoded(delta)
        self._ready[delta] = layer
        if len(self._ready) > READY:
            self._ready.popitem(last=False)
        return layer

    def _decoded(self, delta: Path) -> Layer:
        layer: Layer = []
        for name, (positions, values) in read_delta(delta, self._base).items():
            place = self._names.place(name)
            if place is None or (len(positions) and place.size <= positions[-1]):
                raise StageError("wrong_base", f"The sparse checkpoint's weight {name} does not fit the model.")
            part, _ = part_of(self._weights[place.weight])
            at = torch.from_numpy(place.in_weight(positions)).to(part.device)
            layer.append((part, at, torch.from_numpy(values).to(part.device, part.dtype)))
        return layer


@torch.no_grad()
def _write(layer: Layer) -> None:
    for part, at, values in layer:
        part[at] = values
