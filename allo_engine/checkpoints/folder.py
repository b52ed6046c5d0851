"""What a checkpoint's folder says without its weights being read: names, sizes, its fingerprint. Free of torch.

A safetensors file is 8 bytes of header length (little-endian), a JSON header, and the tensors' bytes at the offsets
that it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

Header = dict[str, dict[str, Any]]
"""Tensors by name: {dtype, shape, data_offsets}."""


def context_length(folder: Path) -> int:
    """The longest sequence that a model was made for, in tokens; 2**31 where its config.json names none.

    The first of a model's own names for it counts; a multimodal model's is that of its text part.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parts = (config, config.get("text_config") or {})
    named = (part.get(name) for part in parts for name in _CONTEXT_NAMES)
    return next((int(length) for length in named if length), 2**31)


_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


def ends_of(folder: Path) -> tuple[int, ...]:
    """The ids of `eos_token_id` in generation_config.json, one or a list; none where it names none."""
    path = folder / "generation_config.json"
    ends = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.exists() else None
    if ends is None:
        return ()
    return tuple(ends) if isinstance(ends, list) else (int(ends),)


def fingerprint(folder: Path) -> str:
    """sha256 over a checkpoint's weight files: what a delta names as its base."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def weight_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every stored tensor of a checkpoint by name, in the order of names, with the file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
    else:
        names = dict.fromkeys(tensors(folder / "model.safetensors"), "model.safetensors")
    for name in sorted(names):
        yield name, folder / names[name]


def header(file: BinaryIO) -> tuple[Header, int]:
    """The tensors that a safetensors file names, and where in the file their bytes begin."""
    length = int.from_bytes(file.read(8), "little")
    found: Header = json.loads(file.read(length))
    found.pop("__metadata__", None)
    return found, 8 + length


def tensors(path: Path) -> Header:
    """The tensors that a safetensors file names."""
    with path.open("rb") as file:
        return header(file)[0]
