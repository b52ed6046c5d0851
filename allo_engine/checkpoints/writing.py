"""A checkpoint folder written anew, piece by piece: never a model in memory, not even a weight."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from allo_engine.checkpoints.coding import Floats, Places
from allo_engine.checkpoints.folder import weight_files
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor, pieces
from allo_engine.report import StageError

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What weights are written in, as safetensors names it."""

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


def rewrite(base: Path, out: Path, dtype: torch.dtype, contents: Contents) -> None:
    """Write to `out` the checkpoint `base` with other contents, all weights in `dtype`, in the same files.

    Values are rounded once, from float32; what is not stored in floating point stays as it is. The folder is written
    aside and renamed when it is whole; raises StageError where `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise StageError("not_empty", f"{out} holds something already: name another folder.")
    aside = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # what an interrupted run left
    aside.mkdir(parents=True)
    try:
        size = _write_weights(base, aside, dtype, contents)
        _copy_the_rest(base, aside, dtype, size)
        aside.replace(out)
        _flush(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_weights(base: Path, out: Path, dtype: torch.dtype, contents: Contents) -> int:
    """The bytes of all weights."""
    total = 0
    with Checkpoint(base) as stored:
        files: dict[Path, dict[str, StoredTensor]] = {}
        for name, path in sorted(weight_files(base), key=lambda found: stored.tensors[found[0]].offset):
            files.setdefault(path, {})[name] = stored.tensors[name]
        for path, weights in files.items():
            layout = {name: _entry(weight, dtype) for name, weight in weights.items()}
            parts = (part for name, weight in weights.items() for part in _parts(name, weight, dtype, contents))
            write_tensors(out / path.name, layout, {"format": "pt"}, parts)
            total += sum(size for _, _, size in layout.values())
    return total


def _entry(weight: StoredTensor, dtype: torch.dtype) -> tuple[str, list[int], int]:
    if not weight.numbers:
        return weight.dtype, list(weight.shape), weight.length
    return DTYPES[dtype], list(weight.shape), weight.size * dtype.itemsize


def _parts(name: str, weight: StoredTensor, dtype: torch.dtype, contents: Contents) -> Iterator[memoryview]:
    """A weight's new bytes, piece by piece."""
    if not weight.numbers:
        yield weight.read_bytes(0, weight.length).data
        return
    values = contents(name, weight)
    for piece in pieces(weight.size):
        yield torch.from_numpy(values.read(*piece)).to(dtype).view(torch.uint8).numpy().data


def _copy_the_rest(base: Path, out: Path, dtype: torch.dtype, size: int) -> None:
    """Tokenizer, configuration and index; the last two say what is written now."""
    for path in base.iterdir():
        if path.is_file() and path.suffix not in _WEIGHTS:
            shutil.copyfile(path, out / path.name)
    name = str(dtype).removeprefix("torch.")
    _edit(
        out / "config.json",
        lambda config: {key: config[key] for key in config if key != "torch_dtype"} | {"dtype": name},
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
    """Write a safetensors file whose bytes come in parts: aside, flushed to disk, renamed; so never half of one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as stream:
        stream.write(header_bytes(layout, metadata))
        for part in parts:
            stream.write(part)
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
