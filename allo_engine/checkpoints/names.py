"""Where the weights that a checkpoint stores lie in the model that transformers makes of it.

Masks, deltas and merged checkpoints speak of weights as they are stored. In memory transformers may call them
otherwise, stack them (a layer's experts), join them or turn them. It names these conversions itself; here they are run
on numbers that say which stored entry each one is, so that no architecture is known by name. What is found is kept as
an offset and a few strides a weight, and layers that are built alike are worked out once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from allo_engine.checkpoints.folder import Header, stored_tensors
from allo_engine.checkpoints.reading import FLOATS, Checkpoint, pieces, same_values
from allo_engine.report import StageError

Flat = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a stored tensor lies in a weight of the model.

    Its entry n lies at `offset` + Σ digit·stride, flat, where the digits are those of n as a number whose digits count
    to `sizes`, the last the fastest. A weight that is only called otherwise has one digit, of stride 1.
    """

    weight: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...] = (1,)
    offset: int = 0

    @property
    def size(self) -> int:
        return int(np.prod(self.sizes, dtype=np.int64))

    @property
    def plain(self) -> bool:
        return self.strides == (1,) and not self.offset

    def in_weight(self, stored_K: Flat) -> Flat:
        """Flat positions in the weight, from flat positions in the stored tensor."""
        if self.plain:
            return stored_K
        found_K, left_K = np.full_like(stored_K, self.offset), stored_K
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            left_K, digit_K = np.divmod(left_K, size)
            found_K += digit_K * stride
        return found_K

    def in_stored(self, weight_K: Flat) -> Flat:
        """The other way: in a weight's view without gaps or overlaps, larger strides step over all smaller ones."""
        if self.plain:
            return weight_K
        counts = np.cumprod((1, *self.sizes[:0:-1]))[::-1]  # what one of each digit is worth in the stored tensor
        found_K, left_K = np.zeros_like(weight_K), weight_K - self.offset
        for stride, worth in sorted(zip(self.strides, counts, strict=True), reverse=True):
            digit_K, left_K = np.divmod(left_K, stride)
            found_K += digit_K * worth
        return found_K

    def view(self, weight: Tensor) -> Tensor:
        """The stored tensor's entries in its own order, as a view of the weight, shaped as `sizes`."""
        flat = weight.detach().view(-1)
        return flat.as_strided(self.sizes, self.strides, flat.storage_offset() + self.offset)


@dataclass(frozen=True)
class Names:
    """The stored weights that a model's text goes through, by name, each with its place.

    `copies` are stored twice though the model ties them: the second's name → the one in `places`.
    """

    places: dict[str, Place] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: place.size for name, place in self.places.items()}

    def place(self, name: str) -> Place | None:
        """The place of a stored weight, or None where text does not go through it."""
        return self.places.get(self.copies.get(name, name))


def own_names(model: nn.Module) -> Names:
    """A model's weights by the names that they have in memory."""
    return Names({name: Place(name, (weight.numel(),)) for name, weight in model.named_parameters()})


def text_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The weights of a model's text decoder and head by name, tied ones once; what sees and hears is not among them."""
    modules = [model.get_decoder(), model.get_output_embeddings()]  # type: ignore[no-untyped-call]
    used = {id(weight) for module in modules if module is not None for weight in module.parameters()}
    return {name: weight for name, weight in model.named_parameters() if id(weight) in used}


def names_of(model: PreTrainedModel, folder: Path) -> Names:
    """Where a checkpoint's weights lie in a model that was made of it, on whatever device, "meta" too.

    Raises StageError bad_model where a weight of the model is not stored whole, or stored entries come to lie in it
    without a rule.
    """
    stored, wanted, names = stored_tensors(folder), text_weights(model), Names()
    own = {id(weight): name for name, weight in wanted.items()}
    aliases = {name: own[id(w)] for name, w in model.named_parameters(remove_duplicate=False) if id(w) in own}
    taken: dict[Place, str] = {}
    found = [(name, place) for name, place in _places(model, stored) if place.weight in aliases]
    for name, place in sorted(found, key=lambda pair: pair[1].weight not in wanted):
        tied = replace(place, weight=aliases[place.weight])
        twin = taken.setdefault(tied, name)
        if twin == name:
            names.places[name] = tied
        elif _equal(folder, twin, name):
            names.copies[name] = twin
        else:  # transformers ties two that are stored only while they are equal
            names.places[name] = place
    _check_whole(names, stored, wanted)
    return Names(dict(sorted(names.places.items())), names.copies)


def buffers_of(model: PreTrainedModel, folder: Path) -> dict[str, Place]:
    """Where in a model's buffers stored numbers lie, by their stored name."""
    own, stored = dict(model.named_buffers()), stored_tensors(folder)
    return {
        name: Place(target, (own[target].numel(),))
        for name, target, pattern in _targets(model, stored, model.state_dict())
        if target in own and pattern is None and stored[name]["dtype"] in FLOATS
    }


def trained_sizes(folder: Path) -> dict[str, int]:
    """The entries of each stored weight that a mask may take: all, where no configuration says what text goes through.

    Raises StageError as `names_of` does.
    """
    if (folder / "config.json").exists():
        return names_of(skeleton(folder), folder).sizes
    return {name: math.prod(tensor["shape"]) for name, tensor in stored_tensors(folder).items()}


def skeleton(folder: Path) -> PreTrainedModel:
    """A checkpoint's model without its weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _equal(folder: Path, first: str, second: str) -> bool:
    with Checkpoint(folder) as stored:
        return same_values(stored.tensors[first], stored.tensors[second])


def _check_whole(names: Names, stored: Header, wanted: Mapping[str, Tensor]) -> None:
    entries: dict[str, int] = defaultdict(int)
    for name, place in names.places.items():
        entries[place.weight] += place.size
        if stored[name]["dtype"] not in FLOATS:
            raise _bad(f"weight {name} is stored as {stored[name]['dtype']}; known are {', '.join(FLOATS)}")
    for name, weight in wanted.items():
        if entries[name] != weight.numel():
            raise _bad(f"of the model's weight {name}, {entries[name]} entries of {weight.numel()} are stored")


def _places(model: PreTrainedModel, stored: Header) -> Iterator[tuple[str, Place]]:
    """Every stored tensor that the model takes, with its place in the model's state."""
    state = model.state_dict()
    joined: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, target, pattern in _targets(model, stored, state):
        shape, wanted = tuple(stored[name]["shape"]), tuple(state[target].shape)
        if pattern is not None:
            joined[target].append((name, pattern))
        elif shape == wanted:
            yield name, Place(target, (math.prod(shape),))
        else:
            raise _bad(f"weight {name} is stored as {shape}, the model's is {wanted}")
    alike: dict[Any, list[Place]] = {}
    for target, parts in joined.items():
        shapes = [tuple(stored[name]["shape"]) for name, _ in parts]
        conversion = _Conversion(model, target, [pattern for _, pattern in parts])
        made = conversion(torch.empty(shape, device="meta") for shape in shapes)
        if any(name not in state or state[name].shape != tensor.shape for name, tensor in made.items()):
            raise _bad(f"what is stored for weight {target} does not fit it")
        key = (*conversion.patterns, *shapes)
        if key not in alike:
            alike[key] = conversion.places(shapes)
        for (name, _), place in zip(parts, alike[key], strict=True):
            yield name, replace(place, weight=[*made][int(place.weight)])


def _targets(model: PreTrainedModel, stored: Header, state: dict[str, Tensor]) -> Iterator[tuple[str, str, str | None]]:
    """What transformers calls each stored tensor that it takes, and the pattern of the conversion that it goes into."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:  # renamed by a rule for others
            target, pattern = name, None
        if target in state:
            yield name, target, pattern


@dataclass(frozen=True)
class _Conversion:
    """Several stored tensors made into weights by transformers; `patterns` say which of its sources each of them is."""

    model: PreTrainedModel
    target: str
    patterns: Sequence[str]

    def __call__(self, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
        converter = self._converter()
        for number, (pattern, tensor) in enumerate(zip(self.patterns, tensors, strict=True)):
            converter.add_tensor(self.target, str(number), pattern, tensor)  # type: ignore[arg-type]  # as when it saves
        try:
            made = converter.convert(self.target, model=self.model, config=self.model.config)
        except (RuntimeError, ValueError) as error:  # a part is missing, or of another shape
            raise _bad(f"what is stored for weight {self.target} cannot be put together: {error}") from error
        return {name: found[0] if isinstance(found, list) else found for name, found in made.items()}

    def _converter(self) -> WeightConverter:
        transforms = get_model_conversion_mapping(self.model)
        return next(t for t in transforms if isinstance(t, WeightConverter) and self.patterns[0] in t.source_patterns)

    def places(self, shapes: Sequence[tuple[int, ...]]) -> list[Place]:
        """Each stored tensor's place; for a weight's name, its number among those that are made."""
        sizes = [math.prod(shape) for shape in shapes]
        ends = [*accumulate(sizes)]
        kind = torch.int32 if ends[-1] < 2**31 else torch.int64
        numbers = (
            torch.arange(end - size, end, dtype=kind).view(shape)
            for end, size, shape in zip(ends, sizes, shapes, strict=True)
        )
        found: dict[int, Place] = {}
        for made, codes in enumerate(self(numbers).values()):
            if codes.dtype != kind or codes.min() < 0 or codes.max() >= ends[-1]:
                raise _bad(f"the values of {self.target} are computed from what is stored")
            where = _inverse(codes.numpy().reshape(-1), ends[-1])
            last: tuple[Place, Flat] | None = None
            for part, (end, size) in enumerate(zip(ends, sizes, strict=True)):
                positions = where[end - size : end]
                if positions.min() >= 0:
                    last = _like(last, positions) or (strided(str(made), positions), positions - positions[0])
                    found[part] = last[0]
        if len(found) < len(sizes):
            raise _bad(f"a stored weight is divided among several to make {self.target}")
        return [found[part] for part in range(len(sizes))]


def _inverse(numbers: Flat, size: int) -> Flat:
    """Where each number below `size` stands, −1 where nowhere; piece by piece, as these are a layer's experts."""
    where = np.full(size, -1, dtype=numbers.dtype)
    for start, count in pieces(len(numbers)):
        where[numbers[start : start + count]] = np.arange(start, start + count, dtype=where.dtype)
    return where


def _like(known: tuple[Place, Flat] | None, positions: Flat) -> tuple[Place, Flat] | None:
    """The place of entries that lie as those of a known one do (given from its first on), further on in the weight."""
    if known is None or not np.array_equal(positions - positions[0], known[1]):
        return None
    return replace(known[0], offset=int(positions[0])), known[1]


def strided(weight: str, positions: Flat) -> Place:
    """The place whose entries lie at these positions, in order. Raises StageError bad_model where there is none."""
    sizes, strides, rest = [], [], positions
    while len(rest) > 1:
        steps = np.diff(rest)
        changes = np.flatnonzero(steps != steps[0])
        sizes.append(int(changes[0]) + 1 if len(changes) else len(rest))
        strides.append(int(steps[0]))
        rest = rest[:: sizes[-1]]
    place = Place(weight, tuple(reversed(sizes)) or (1,), tuple(reversed(strides)) or (1,), int(positions[0]))
    if place.size != len(positions) or not np.array_equal(place.in_weight(np.arange(len(positions))), positions):
        raise _bad(f"entries come to lie in {weight} without a rule")
    return place


def _bad(what: str) -> StageError:
    return StageError("bad_model", f"This checkpoint cannot be trained: {what}.")
