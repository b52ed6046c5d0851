"""How much each weight counts for alignment: the sources that the top share is selected from.

`update`    I(D, θ_i) ≈ |θ'_i − θ_i| / α of the warm-up's update. α is one number for all weights and changes no order,
            so it is left out. θ are the very float32 weights that the warm-up started from.
`least`     the same, turned around: a control.
`random`    uniform numbers of the seed, without a warm-up.
`gradient`  |∂L/∂θ_i| of the DPO loss at the start model, without a warm-up (see gradients.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from allo_engine.checkpoints.names import Names
from allo_engine.checkpoints.reading import StoredTensor
from allo_engine.masking.selection import END, Patterns
from allo_engine.report import StageError

Stored = Mapping[str, StoredTensor]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
"""All bits of a float32 but its sign."""

_DRAWS = 8
"""Float32 numbers of one step of Philox's counter."""


class Update:
    """|θ' − θ| of two checkpoints' weights, of those that are named.

    Raises StageError where the second is of another model.
    """

    def __init__(self, before: Stored, after: Stored, names: Iterable[str]) -> None:
        self.sizes = {name: before[name].size for name in names}
        for name in self.sizes:
            tensor = before[name]
            if name not in after or after[name].shape != tensor.shape:
                raise StageError(
                    "wrong_base",
                    f"The warm-up's checkpoint is of another model: weight {name} is not in it, or differs.",
                )
        self._before, self._after = before, after

    def patterns(self, name: str, start: int, count: int) -> Patterns:
        values = self._after[name].read(start, count)
        values -= self._before[name].read(start, count)
        patterns = values.view(np.uint32)
        patterns &= _MAGNITUDE
        return patterns


class Least(Update):
    """The complement of the update's bit pattern: it turns the order of finite numbers ≥ 0 around."""

    def patterns(self, name: str, start: int, count: int) -> Patterns:
        return np.uint32(END - 1) - super().patterns(name, start, count)


class Random:
    """Uniform numbers: of the seed, the tensor's place among all, and the weight's position, however they are read."""

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        self.sizes, self._seed = sizes, seed
        self._numbers = {name: number for number, name in enumerate(sizes)}

    def patterns(self, name: str, start: int, count: int) -> Patterns:
        step, skipped = divmod(start, _DRAWS)
        philox = np.random.Philox(key=[self._seed, self._numbers[name]]).advance(step)
        return np.random.Generator(philox).random(skipped + count, dtype=np.float32)[skipped:].view(np.uint32)


class Gradient:
    """|g| of gradients in memory, float32 by the weight's name there."""

    def __init__(self, gradients: Mapping[str, Tensor], names: Names) -> None:
        self._flat = {name: gradient.reshape(-1) for name, gradient in gradients.items()}
        self._places = names.places
        self.sizes = names.sizes

    def patterns(self, name: str, start: int, count: int) -> Patterns:
        place = self._places[name]
        gradient = self._flat[place.weight]
        if place.plain:
            found = gradient[start : start + count]
        else:
            found = gradient[torch.from_numpy(place.in_weight(np.arange(start, start + count))).to(gradient.device)]
        return found.cpu().numpy().view(np.uint32) & _MAGNITUDE
