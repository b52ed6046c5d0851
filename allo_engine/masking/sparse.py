"""The masked entries as the parameters.

The weights of the model stay frozen, in float32 or in 16 bits. Every weight that the mask touches gets a float32 vector
of its masked entries, and these vectors are all that autograd, the optimizer and a checkpoint know: with a share ρ of N
weights they take 20ρ bytes a weight (value, gradient, two moments and place, four bytes each) beside the weights' 2 or
4, where dense mixed AdamW takes 16 to 18.

A parametrization gives the weight as it is to the forward pass, and its backward gathers the masked entries of the
weight's gradient. The dense gradient lives no longer than that. After each step of the optimizer `write_back` copies
the values into the weights. So the reference model is the same weights before the first step: no second model is held.

The weights may be made later, and each rank may hold no more than its part of them (see model/sharing.py): all ranks
hold all masked entries, and each copies into the weights those that lie in its part.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from allo_engine.checkpoints.delta import Values
from allo_engine.checkpoints.names import Names, own_names
from allo_engine.checkpoints.parts import part_of
from allo_engine.model.loading import device
from allo_engine.report import StageError

_LARGEST_INT32 = 2**31 - 1


class _GatherGradient(torch.autograd.Function):
    """The weight as it is; backward, the masked entries of its gradient."""

    @staticmethod
    def forward(ctx: Any, values_K: Tensor, weight: Tensor, positions_K: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(positions_K)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (positions_K,) = ctx.saved_tensors
        return grads[0].reshape(-1).index_select(0, positions_K).float(), None, None


class MaskedEntries(nn.Module):
    """The parametrization of one weight: its masked entries are the parameter `values`, float32 [K].

    Their positions are kept in four bytes, in eight for a weight of more than 2³¹ entries.
    """

    positions: Tensor

    def __init__(self, weight: Tensor, positions_K: Tensor, values_K: Tensor) -> None:
        super().__init__()
        places = positions_K.int() if weight.numel() <= _LARGEST_INT32 else positions_K
        where = device() if weight.is_meta else weight.device
        self.register_buffer("positions", places.to(where), persistent=False)
        self.values = nn.Parameter(values_K.to(where, torch.float32, copy=True))

    def forward(self, weight: Tensor) -> Tensor:
        return _GatherGradient.apply(self.values, weight, self.positions)  # type: ignore[no-any-return,no-untyped-call]

    @torch.no_grad()
    def write_into(self, weight: Tensor) -> None:
        """Copy the values into what this process holds of the weight, rounded to its precision."""
        part, first = part_of(weight)
        at_K, values_K = self.positions.long() - first, self.values.detach()
        if len(part) < weight.numel():
            inside_K = (at_K >= 0) & (at_K < len(part))
            at_K, values_K = at_K[inside_K], values_K[inside_K]
        part.index_copy_(0, at_K, values_K.to(part.dtype))


class SparseModel:
    """A model that trains in a mask alone: `values` are its parameters, by the name that a weight has in memory."""

    def __init__(self, model: nn.Module, start: Values, names: Names | None = None) -> None:
        """`start` gives each stored weight's masked flat positions and the float32 values that they have there.

        `names` says where stored weights lie in the model's; without it, they are called as in memory. Raises
        StageError where a name is not a weight of the model.
        """
        self._places = (names or own_names(model)).places
        unknown = sorted(set(start) - set(self._places))
        if unknown:
            raise StageError(
                "bad_mask", f"The mask names weights that the model does not have: {', '.join(unknown[:3])}."
            )
        model.requires_grad_(False)
        self._counts: dict[str, dict[str, int]] = defaultdict(dict)  # entries, by weight and by where they are stored
        for name, (positions, _) in start.items():
            if len(positions):
                self._counts[self._places[name].weight][name] = len(positions)
        self._weights: dict[str, nn.Module] = {}
        self._entries: dict[str, MaskedEntries] = {}
        owners = _owners(model)
        for weight, stored in self._counts.items():
            places = [torch.from_numpy(self._places[name].in_weight(start[name][0])) for name in stored]
            values = [torch.from_numpy(start[name][1]) for name in stored]
            self._attach(weight, owners[weight], torch.cat(places), torch.cat(values))

    def _attach(self, name: str, owners: list[tuple[nn.Module, str]], positions_K: Tensor, values_K: Tensor) -> None:
        weight = getattr(*owners[0])
        entries = MaskedEntries(weight, positions_K, values_K)
        for module, attribute in owners:  # tied weights stand in several modules and share one parametrization
            parametrize.register_parametrization(module, attribute, entries, unsafe=True)
        self._weights[name] = cast(nn.ModuleDict, module.parametrizations)[attribute]  # whose `original` is the weight
        self._entries[name] = entries

    @property
    def values(self) -> dict[str, nn.Parameter]:
        return {name: entries.values for name, entries in self._entries.items()}

    def write_back(self) -> None:
        """Copy the values into the weights, rounded to the weights' precision."""
        for name, entries in self._entries.items():
            entries.write_into(cast(Tensor, self._weights[name].original))

    def trained(self) -> Values:
        """Every stored weight's masked positions with the values as they are now."""
        found: Values = {}
        for weight, counts in self._counts.items():
            entries, cuts = self._entries[weight], [*accumulate(counts.values())][:-1]
            positions = np.split(entries.positions.long().cpu().numpy(), cuts)
            values = np.split(entries.values.detach().cpu().numpy(), cuts)
            for name, places_K, values_K in zip(counts, positions, values, strict=True):
                found[name] = self._places[name].in_stored(places_K), values_K
        return found


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every weight by its first name, with all places where it stands."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
    for module in model.modules():
        for attribute, weight in module.named_parameters(recurse=False):
            owners[names[id(weight)]].append((module, attribute))
    return owners
