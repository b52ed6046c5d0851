"""Where stored weights lie in the model that vLLM made of a checkpoint, so that some of their entries can be changed.

vLLM joins weights (queries, keys and values), pads them, and packs them for a processor's kernels. No architecture is
known by name here: vLLM's own loader is run on an empty tensor in a stored weight's stead, and where it would copy that
to is written down, while nothing is copied. Then one weight of each kind is tried: that what lies there is what is
stored, and that the model reads it from there. What fails is not changed in place, but refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from allo_engine.checkpoints.names import Flat, Names, Place
from allo_engine.checkpoints.overlay import Where, does_not_fit
from allo_engine.checkpoints.reading import Checkpoint
from allo_engine.checkpoints.writing import gathered
from allo_engine.report import StageError

TRIED = 1 << 16
"""Entries of a weight that are tried, spread over all of it."""


@dataclass(frozen=True)
class Piece:
    """Entries of a stored weight, from flat position `first` on, and where they lie in what holds them, seen flat."""

    first: int
    part: Tensor
    place: Place


def keep_plain() -> None:
    """Have vLLM leave weights as they are on a processor, before it loads a model: by default oneDNN packs copies."""
    from vllm import _custom_ops

    _custom_ops._supports_onednn = False


def in_vllm(model: nn.Module, base: Path, names: Names) -> Where:
    """Where the stored weights that `names` names lie in vLLM's model of the folder `base`.

    Raises StageError not_served where one is kept in another form.
    """
    copies, pieces = _Copies(model.parameters()), dict[str, list[Piece]]()
    with Checkpoint(base) as stored, torch.no_grad(), copies:
        for name in [*names.places, *names.copies]:
            pieces[name] = copies.of(model, name, stored.tensors[name].shape)
    for copy, name in names.copies.items():  # tied: vLLM loads one of the two
        pieces[name], pieces[copy] = pieces[name] or pieces[copy], pieces[copy] or pieces[name]
    for name in names.places:
        if sum(piece.place.size for piece in pieces[name]) != names.sizes[name]:
            raise _kept_otherwise(name)

    def where(name: str, positions: Flat) -> Iterator[tuple[Tensor, Flat]]:
        if name not in pieces:
            raise does_not_fit(name)
        for piece in pieces[name]:
            first, last = np.searchsorted(positions, (piece.first, piece.first + piece.place.size))
            if first < last:
                yield piece.part, piece.place.in_weight(positions[first:last] - piece.first)

    return where


@torch.no_grad()
def try_out(where: Where, base: Path, names: Names, answer: Callable[[], Any]) -> None:
    """See that the model's answer depends on one weight of each kind, where it lies and as it is stored.

    Raises StageError not_served where it does not.
    """
    plain, noise = answer(), torch.Generator().manual_seed(0)
    kinds = {re.sub(r"\d+", "#", name): name for name in reversed(names.places)}
    with Checkpoint(base) as stored:
        for name in kinds.values():
            positions = np.arange(0, names.sizes[name], max(1, names.sizes[name] // TRIED))
            lying = [(part, torch.from_numpy(at).to(part.device)) for part, at in where(name, positions)]
            beneath = [part.index_select(0, at) for part, at in lying]
            as_stored = torch.from_numpy(gathered(stored.tensors[name], positions)).to(beneath[0])
            for (part, at), values in zip(lying, beneath, strict=True):
                part.index_copy_(0, at, values + torch.randn(len(at), generator=noise).to(values))
            moved = answer()
            for (part, at), values in zip(lying, beneath, strict=True):
                part.index_copy_(0, at, values)
            if moved == plain or not torch.equal(torch.cat(beneath), as_stored):
                raise _kept_otherwise(name)
    if answer() != plain:
        raise StageError("not_served", "vLLM does not answer as before once its weights are what they were.")


class _Copies(TorchDispatchMode):
    """Keeps whatever happens from writing to these weights, and sees what would be copied into them."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = {_storage(weight): _flat(weight) for weight in weights}
        self._source, self._seen = 0, list[tuple[Tensor, Tensor]]()

    def of(self, model: Any, name: str, shape: tuple[int, ...]) -> list[Piece]:
        """What is seen of one stored weight, in its order; nothing where it is not copied as it is."""
        stand_in = torch.empty(shape)
        self._source, self._seen = _storage(stand_in), []
        try:
            model.load_weights([(name, stand_in)])
        except Exception as error:  # whatever a loader has against weights that were packed
            raise _kept_otherwise(name) from error
        seen = sorted(self._seen, key=lambda pair: _first(pair[1]))
        if any(source.shape != target.shape or not source.is_contiguous() for target, source in seen):
            return []
        return [Piece(_first(source), self._whole[_storage(target)], _place(target)) for target, source in seen]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _WRITES or _storage(args[0]) not in self._whole:
            return func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default and _storage(args[1]) == self._source:
            self._seen.append((args[0], args[1]))
        return args[0]


_WRITES = {torch.ops.aten.copy_.default, torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _flat(weight: Tensor) -> Tensor:
    """All that lies where a weight does."""
    count = weight.untyped_storage().nbytes() // weight.element_size()
    return weight.detach().as_strided((count,), (1,), 0)


def _first(view: Tensor) -> int:
    return int(view.storage_offset())


def _place(view: Tensor) -> Place:
    if view.is_contiguous():
        return Place("", (view.numel(),), (1,), _first(view))
    return Place("", tuple(view.shape), view.stride(), _first(view))


def _kept_otherwise(name: str) -> StageError:
    return StageError("not_served", f"vLLM keeps the weight {name} in a form of its own.")
