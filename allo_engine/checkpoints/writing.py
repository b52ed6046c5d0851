"""A checkpoint folder written anew, piece by piece: never a model in memory, not even a weight."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allo_engine.checkpoints.coding import Floats, Places
from allo_engine.checkpoints.folder import weight_files
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor
from allo_engine.report import StageError

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What weights are written in, as safetensors names it."""

Layout = Mapping[str, tuple[str, list[int], int]]
"""A file's tensors in the order of their data: name → (dtype as safetensors names it, shape, bytes)."""

Changes = Callable[[str, StoredTensor], tuple[Places, Floats] | None]
"""From a weight's name and its stored self: ascending positions and what stands there instead, or None."""

_PIECE = 1 << 20
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """A weight's flat positions cut into (start, count)."""
    return ((start, min(_PIECE, size - start)) for start in range(0, size, _PIECE))


def gathered(weight: StoredTensor, places_K: Places) -> Floats:
    """A stored weight's values at ascending positions, as float32 [K]."""
    values_K = np.empty(len(places_K), dtype=np.float32)
    for start, count in pieces(weight.size):
        first, last = np.searchsorted(places_K, (start, start + count))
        if first < last:
            values_K[first:last] = weight.read(start, count)[places_K[first:last] - start]
    return values_K


def rewrite(base: Path, out: Path, dtype: torch.dtype, changes: Changes) -> None:
    """Write to `out` the checkpoint `base` with some entries changed, all weights in `dtype`, in the same files.

    Values are rounded once, from float32. The folder is written aside and renamed when it is whole; raises
    StageError where `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise StageError("not_empty", f"{out} holds something already: name another folder.")
    aside = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)  # what an interrupted run left
    aside.mkdir(parents=True)
    try:
        size = _write_weights(base, aside, dtype, changes)
        _copy_the_rest(base, aside, dtype, size)
        aside.replace(out)
        _flush(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_weights(base: Path, out: Path, dtype: torch.dtype, changes: Changes) -> int:
    """The bytes of all weights."""
    with Checkpoint(base) as stored:
        files: dict[Path, dict[str, StoredTensor]] = {}
        for name, path in sorted(weight_files(base), key=lambda found: stored.tensors[found[0]].offset):
            files.setdefault(path, {})[name] = stored.tensors[name]
        for path, weights in files.items():
            layout = {
                name: (DTYPES[dtype], list(weight.shape), weight.size * dtype.itemsize)
                for name, weight in weights.items()
            }
            parts = (part for name in weights for part in _changed(weights[name], changes(name, weights[name]), dtype))
            write_tensors(out / path.name, layout, {"format": "pt"}, parts)
        return sum(weight.size for weight in stored.tensors.values()) * dtype.itemsize


def _changed(weight: StoredTensor, change: tuple[Places, Floats] | None, dtype: torch.dtype) -> Iterator[memoryview]:
    """A weight's bytes with its changes, piece by piece."""
    for start, count in pieces(weight.size):
        piece = weight.read(start, count)
        if change:
            places, values = change
            first, last = np.searchsorted(places, (start, start + count))
            piece[places[first:last] - start] = values[first:last]
        yield torch.from_numpy(piece).to(dtype).view(torch.uint8).numpy().data


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
