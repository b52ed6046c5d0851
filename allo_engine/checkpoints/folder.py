"""What a checkpoint's folder says without its weights being read: names, sizes, its fingerprint. Free of torch.

A safetensors file is 8 bytes of header length (little-endian), a JSON header, and the tensors' bytes at the offsets
that it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
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
        total.update(digest_of(path))
    return total.hexdigest()


def digest_of(path: Path) -> bytes:
    """A file's sha256. It is read once a process."""
    now = path.stat()
    return _digest(path.resolve(), now.st_ino, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=1024)
def _digest(path: Path, inode: int, size: int, written: int) -> bytes:  # noqa: ARG001 - what tells it from a changed one
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def tied(folder: Path) -> bool:
    """Whether a model's input and output embeddings are one weight: as its configuration says, or else its class."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tie_word_embeddings": False}
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    from transformers import AutoConfig  # here, because most configurations say it, and this takes a second

    return bool(getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "tie_word_embeddings", False))


def weight_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every stored tensor of a checkpoint by name, in the order of names, with the file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
    else:
        names = dict.fromkeys(tensors(folder / "model.safetensors"), "model.safetensors")
    for name in sorted(names):
        yield name, folder / names[name]


def stored_tensors(folder: Path) -> Header:
    """Every stored tensor of a checkpoint by name, in the order of names."""
    files = {path: tensors(path) for path in {path for _, path in weight_files(folder)}}
    return {name: files[path][name] for name, path in weight_files(folder)}


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
