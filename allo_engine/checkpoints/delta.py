"""The sparse checkpoint: the masked entries' places and trained values, exact, in about 3 bytes an entry.

A folder holds one safetensors file, delta.safetensors. Its metadata:

    format    "allo-delta-1"
    base      the fingerprint of the base checkpoint: hex sha256 over the sha256 digests of its *.safetensors files, in
              the order of their names
    entries   JSON, an object: each stored weight's name → its number of entries, 1 to the weight's size

and for each of these weights two tensors of bytes, U8 [length], each one zlib stream (RFC 1950):

    <weight>/gaps      the entries' flat positions in the weight (C order), ascending, as gaps: how many positions are
                       skipped since the entry before, or since the start. A gap g is ⌊g / 255⌋ bytes of 255 and then
                       one byte g mod 255, so that entries and bytes other than 255 are the same number.
    <weight>/values    4 bytes an entry, in the same order, as four planes: all entries' lowest bytes, …, all highest,
                       of the uint32 z = (d << 1) ⊕ (d >> 31), where the int32 d = o(trained) − o(base) modulo 2³²,
                       o(x) = b where b ≥ 0, else b ⊕ 0x7FFFFFFF, with b the bits of x as int32. `base` is the base
                       checkpoint's value, widened to float32 if it is stored in 16 bits.

So the trained value's bits come back exactly, whatever they are, and alignment's small steps leave the two high planes
nearly empty. A weight is named as in the base; tied weights are one weight; one without entries is not stored.

`allo merge` merges a delta into its base, and `allo info` says what one holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import nn

from allo_engine.checkpoints import coding
from allo_engine.checkpoints.folder import digest_of, fingerprint, tied
from allo_engine.checkpoints.merging import File, Merged
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor, same_values
from allo_engine.checkpoints.recipe import DESCRIBED, Recipe
from allo_engine.checkpoints.writing import DTYPES, files_of, gathered, remade, write_tensors, write_whole
from allo_engine.report import StageError

if TYPE_CHECKING:  # transformers comes with these
    from transformers import PreTrainedModel

    from allo_engine.checkpoints.names import Names

FILE = "delta.safetensors"
FORMAT = "allo-delta-1"
KINDS = ("gaps", "values")

Entries = tuple[NDArray[np.int64], NDArray[np.float32]]
"""One weight's ascending flat positions [K] and their trained values [K]."""
Values = dict[str, Entries]
"""Entries by the weight's name."""


def write_delta(values: Values, base: Path, folder: Path) -> None:
    """Write the trained values of a model that was loaded from the checkpoint folder `base`.

    Raises StageError wrong_base where the base has no such weight or position, ValueError where positions do not
    ascend.
    """
    names = sorted(name for name, (positions, _) in values.items() if len(positions))
    with Checkpoint(base) as stored, ThreadPoolExecutor(max_workers=2) as pool:
        digest = pool.submit(fingerprint, base)  # hashing and deflating leave the interpreter to others
        coded = pool.map(lambda name: _encoded(values[name], _weight(stored, name)), names)
        streams = {
            f"{name}/{kind}": stream
            for name, pair in zip(names, coded, strict=True)
            for kind, stream in zip(KINDS, pair, strict=True)
        }
        counts = {name: len(values[name][0]) for name in names}
        metadata = {"format": FORMAT, "base": digest.result(), "entries": json.dumps(counts)}
    folder.mkdir(parents=True, exist_ok=True)
    layout = {key: ("U8", [len(stream)], len(stream)) for key, stream in streams.items()}
    write_tensors(folder / FILE, layout, metadata, map(memoryview, streams.values()))


def read_delta(folder: Path, base: Path) -> Values:
    """All entries. Raises StageError: wrong_base where the delta belongs to another base, bad_delta if damaged."""
    return dict(_read(folder, base))


def apply_delta(model: PreTrainedModel, folder: Path, base: Path) -> None:
    """Write a delta's values into a model that was loaded from `base`, in each weight's own dtype.

    Raises StageError: wrong_base where the delta belongs to another base or model, bad_delta if damaged.
    """
    from allo_engine.checkpoints.names import names_of

    write_into(model, _read(folder, base), names_of(model, base))


@torch.no_grad()
def write_into(model: nn.Module, values: Iterable[tuple[str, Entries]], names: Names) -> None:
    """Set what this process holds of a model's weights at entries of its stored weights, in the precision that they
    have there.
    """
    from allo_engine.checkpoints.parts import part_of, weights_by_name

    weights = weights_by_name(model)
    for name, (positions, numbers) in values:
        place = names.places.get(name)
        if place is None or (len(positions) and place.size <= positions[-1]):
            raise StageError("wrong_base", f"The sparse checkpoint's weight {name} does not fit the model.")
        part, first = part_of(weights[place.weight])
        at = place.in_weight(positions) - first
        inside = (at >= 0) & (at < len(part))
        changed = torch.from_numpy(numbers[inside]).to(part.device, part.dtype)
        part[torch.from_numpy(at[inside]).to(part.device)] = changed


def merge(base: Path, delta: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a whole checkpoint to `out`: the base's weights with the delta's values, streamed.

    In float32 a merged value has the very bits that training left; in another dtype it is rounded once, from float32.
    Raises StageError: wrong_base, bad_delta, or not_empty where `out` holds something already.
    """
    recipes = _recipes(base, delta, _stored_as(dtype))
    with remade(base, out, _stored_as(dtype)) as aside:
        for path, recipe in recipes.items():
            with _merged(path, delta, recipe) as merged:
                write_whole(aside / path.name, merged.stream())


def describe(base: Path, delta: Path, out: Path) -> None:
    """Write to `out` what `merge` would, but for the weights: in their stead merged.json says how each file of them is
    made, and which sha256 it then has. So whoever holds base and delta can serve it without holding it.

    Raises StageError as `merge` does.
    """
    files = []
    for path, recipe in _recipes(base, delta, "F32").items():
        with _merged(path, delta, recipe) as merged:
            digest = hashlib.sha256()
            for part in merged.stream():
                digest.update(part)
            files.append({"path": path.name, "bytes": merged.size, "sha256": digest.hexdigest()} | recipe.fields())
    with remade(base, out, "F32") as aside:
        (aside / DESCRIBED).write_text(json.dumps(files, indent=2), encoding="utf-8")


def _stored_as(dtype: torch.dtype) -> str:
    return next(stored for stored, name in DTYPES.items() if str(dtype) == f"torch.{name}")


@contextmanager
def _merged(path: Path, delta: Path, recipe: Recipe) -> Iterator[Merged]:
    with File(path) as base, File(delta / FILE) as changes:
        yield Merged(base, changes, recipe.dtype, recipe.copies)


def _recipes(base: Path, delta: Path, dtype: str) -> dict[Path, Recipe]:
    """How each of the base's weight files is made into a merged one."""
    source = Delta(delta)
    source.check(base)
    with Checkpoint(base) as stored:
        for name in source.counts:
            _weight(stored, name)  # each is there, before anything is written
        copies = _copies(base, stored, source.counts.keys())
        files = files_of(base, stored)
    changes = digest_of(source.path).hex()
    return {
        path: Recipe(
            digest_of(path).hex(), changes, dtype, {name: twin for name, twin in copies.items() if name in weights}
        )
        for path, weights in files.items()
    }


def _copies(base: Path, stored: Checkpoint, changed: Set[str]) -> dict[str, str]:
    """Where a base stores its tied embeddings twice: the second's name → the one that the delta knows it by.

    A model of tied weights names them once, and transformers ties two that are stored only while they are equal.
    """
    if not tied(base):
        return {}
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    vocabulary = config.get("text_config", config).get("vocab_size")
    embeddings = [name for name, weight in stored.tensors.items() if weight.shape[:1] == (vocabulary,)]
    return {
        copy: name
        for copy in embeddings
        for name in embeddings
        if copy not in changed and name in changed and same_values(stored.tensors[copy], stored.tensors[name])
    }


def _read(folder: Path, base: Path) -> Iterator[tuple[str, Entries]]:
    delta = Delta(folder)
    delta.check(base)
    with Checkpoint(base) as stored:
        for name in delta.counts:
            yield name, delta.entries(name, _weight(stored, name))


def _weight(stored: Checkpoint, name: str) -> StoredTensor:
    if name not in stored.tensors:
        raise StageError("wrong_base", f"The base model stores no weight {name}.")
    return stored.tensors[name]


def _encoded(entries: Entries, weight: StoredTensor) -> tuple[bytes, bytes]:
    positions, values = entries
    if positions[-1] >= weight.size:
        raise StageError("wrong_base", f"Position {positions[-1]} lies outside the base's weight of {weight.size}.")
    return coding.encode_places(positions), coding.encode_values(values, gathered(weight, positions))


class Delta:
    """A stored delta, read weight by weight."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        with self._damage_named():
            self._file = safe_open(self.path, framework="np")
            metadata = self._file.metadata() or {}  # type: ignore[no-untyped-call]
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT}")
            self.base = metadata["base"]
            self.counts = _counts(metadata["entries"])
            streams = self._file.keys()  # type: ignore[no-untyped-call]
            if set(streams) != {f"{name}/{kind}" for name in self.counts for kind in KINDS}:
                raise ValueError("its streams are not those of the weights that it names")

    def check(self, base: Path) -> None:
        """Raises StageError where the delta belongs to another base."""
        if self.base != fingerprint(base):
            raise StageError("wrong_base", "The sparse checkpoint belongs to another base model than the one given.")

    def entries(self, name: str, weight: StoredTensor) -> Entries:
        """A weight's entries, from the weight as its base stores it."""
        with self._damage_named(name):
            if self.counts[name] > weight.size:
                raise ValueError(f"{self.counts[name]} entries do not fit its {weight.size}")
            positions = coding.decode_places(self._stream(f"{name}/gaps"), self.counts[name], weight.size)
        base_K = gathered(weight, positions)
        with self._damage_named(name):
            return positions, coding.decode_values(self._stream(f"{name}/values"), base_K)

    def _stream(self, key: str) -> bytes:
        stream: NDArray[np.uint8] = self._file.get_tensor(key)  # type: ignore[no-untyped-call]
        if stream.dtype != np.uint8:
            raise ValueError(f"{key} is of {stream.dtype}, not of bytes")
        return stream.tobytes()

    @contextmanager
    def _damage_named(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            where = f" at weight {name}" if name else ""
            raise StageError("bad_delta", f"{self.path} is no whole sparse checkpoint{where}: {error}.") from error


def _counts(text: str) -> dict[str, int]:
    counts = json.loads(text)
    if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
        raise ValueError("its numbers of entries are none")
    return counts
