"""A checkpoint folder written anew, piece by piece: never a model in memory, not even a weight."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from allo_engine.checkpoints.coding import Floats, Places
from allo_engine.checkpoints.folder import weight_files
from allo_engine.checkpoints.reading import FLOATS, Checkpoint, StoredTensor, pieces
from allo_engine.put import put
from allo_engine.report import StageError

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""What weights are written in: safetensors' name → torch's."""

Layout = Mapping[str, tuple[str, list[int], int]]
"""A file's tensors in the order of their data: name → (dtype as safetensors names it, shape, bytes)."""


class Values(Protocol):
    """What a weight is made of: a stored one, or what stands in its stead."""

    def read(self, start: int, count: int, /) -> Floats:
        """`count` values from a flat position on."""


Contents = Callable[[str, StoredTensor], Values]
"""From a weight's name and its stored self: what is written for it."""

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


def gathered(weight: StoredTensor, places_K: Places) -> Floats:
    """A stored weight's values at ascending positions, as float32 [K]."""
    values_K = np.empty(len(places_K), dtype=np.float32)
    for start, count in pieces(weight.size):
        first, last = np.searchsorted(places_K, (start, start + count))
        if first < last:
            values_K[first:last] = weight.read(start, count)[places_K[first:last] - start]
    return values_K


def rewrite(base: Path, out: Path, dtype: str, contents: Contents) -> None:
    """Write to `out` the checkpoint `base` with other contents, all weights in `dtype`, in the same files.

    Values are rounded once, from float32; what is not stored in floating point stays as it is. The folder is written
    aside and renamed when it is whole; raises StageError where `out` holds something already.
    """
    with remade(base, out, dtype) as aside, Checkpoint(base) as stored:
        for path, weights in files_of(base, stored).items():
            layout = {name: _entry(weight, dtype) for name, weight in weights.items()}
            parts = (part for name, weight in weights.items() for part in _parts(name, weight, dtype, contents))
            write_tensors(aside / path.name, layout, {"format": "pt"}, parts)


@contextmanager
def remade(base: Path, out: Path, dtype: str) -> Iterator[Path]:
    """A folder to write a checkpoint's weights into; behind them everything else of `base` is put beside them.

    It is written aside and becomes `out` when it is whole; raises StageError where `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise StageError("not_empty", f"{out} holds something already: name another folder.")
    aside = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # what an interrupted run left
    aside.mkdir(parents=True)
    try:
        yield aside
        _copy_the_rest(base, aside, dtype)
        aside.replace(out)
        _flush(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def files_of(base: Path, stored: Checkpoint) -> dict[Path, dict[str, StoredTensor]]:
    """A checkpoint's weight files, each with its tensors in the order of their data."""
    files: dict[Path, dict[str, StoredTensor]] = {}
    for name, path in sorted(weight_files(base), key=lambda found: stored.tensors[found[0]].offset):
        files.setdefault(path, {})[name] = stored.tensors[name]
    return files


def narrowed(values: Floats, dtype: str) -> NDArray[np.uint8]:
    """float32 numbers in another dtype, as bytes: each to the nearest, of two as near to the even one."""
    if dtype == "F32":
        return np.ascontiguousarray(values).view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):  # what is too large is infinite
            return values.astype(np.float16).view(np.uint8)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    none = (bits & 0x7FFFFFFF) > 0x7F800000  # no number: rounding it up may overflow
    if none.any():
        rounded[none] = (bits[none] >> 16) | 0x40
    return rounded.view(np.uint8)


def _entry(weight: StoredTensor, dtype: str) -> tuple[str, list[int], int]:
    if not weight.numbers:
        return weight.dtype, list(weight.shape), weight.length
    return dtype, list(weight.shape), weight.size * np.dtype(FLOATS[dtype]).itemsize


def _parts(name: str, weight: StoredTensor, dtype: str, contents: Contents) -> Iterator[memoryview]:
    """A weight's new bytes, piece by piece."""
    if not weight.numbers:
        yield weight.read_bytes(0, weight.length).data
        return
    values = contents(name, weight)
    for piece in pieces(weight.size):
        yield narrowed(values.read(*piece), dtype).data


def _copy_the_rest(base: Path, out: Path, dtype: str) -> None:
    """Tokenizer, configuration and index; the last two say what is written now."""
    with Checkpoint(base) as stored:
        size = sum(_entry(weight, dtype)[2] for weight in stored.tensors.values())
    for path in base.iterdir():
        if path.is_file() and path.suffix not in _WEIGHTS:
            shutil.copyfile(path, out / path.name)
    _edit(
        out / "config.json",
        lambda config: {key: config[key] for key in config if key != "torch_dtype"} | {"dtype": DTYPES[dtype]},
    )
    _edit(
        out / "model.safetensors.index.json",
        lambda index: index | {"metadata": index.get("metadata", {}) | {"total_size": size}},
    )
    for path in out.iterdir():
        _flush(path)


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if path.exists():
        path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8"))), indent=2), encoding="utf-8")


def write_tensors(path: Path, layout: Layout, metadata: Mapping[str, str], parts: Iterable[memoryview]) -> None:
    """Write a safetensors file whose bytes come in parts: whole or not at all."""
    write_whole(path, chain((header_bytes(layout, metadata),), parts))


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file whose bytes come in parts: aside, flushed to disk, renamed; so never half of one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as stream:
        for part in parts:
            put(stream, part)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
    _flush(path.parent)


def header_bytes(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file begins with: eight bytes of length, then JSON. The tensors' bytes follow in order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, size) in layout.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's list of names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
