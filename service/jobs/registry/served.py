"""What a worker needs of a model to have it answer: a base, and over it a sparse checkpoint where it is made of one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.db import Database
from service.jobs.registry.models import read_model
from service.storage.store import Store

File = tuple[str, str, int]
"""A file's path, sha256 and bytes."""

PRECISION = {"dtype", "torch_dtype", "transformers_version"}
"""What a merged model's config.json says otherwise than its base's, and means nothing here."""


@dataclass(frozen=True)
class Served:
    """A base's files, and the sha256 of the sparse checkpoint over it, if there is one. Models of the same `base` share
    its memory."""

    base: str
    files: tuple[File, ...]
    delta: str | None

    @property
    def weight_bytes(self) -> int:
        """Of the base's weights, as they are stored."""
        return sum(size for path, _, size in self.files if path.endswith(".safetensors"))


def served(database: Database, store: Store, owner: str, name: str) -> Served:
    """What it takes to serve the model. Raises NotFound, and BlobMissing where its config.json cannot be read."""
    model = read_model(database, owner, name)
    files, deltas = [], set()
    for path, sha256, size in ((file["path"], file["sha256"], file["bytes"]) for file in model.files):
        recipe = store.recipe(sha256) if path.endswith(".safetensors") else None
        if recipe is None or recipe.delta is None:
            files.append((path, sha256, size))
        else:
            deltas.add(recipe.delta)
            files.append((path, recipe.base, store.size(recipe.base)))
    return Served(_name(store, files), tuple(files), deltas.pop() if deltas else None)


def _name(store: Store, files: Sequence[File]) -> str:
    """The same for the same weights, tokenizer and shape, in whichever precision a config.json has them."""
    content = sorted((path, _shape(store, sha256) if path == "config.json" else sha256) for path, sha256, _ in files)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _shape(store: Store, sha256: str) -> str:
    return json.dumps(_without_precision(json.loads(b"".join(store.open(sha256)))), sort_keys=True)


def _without_precision(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_precision(item) for name, item in value.items() if name not in PRECISION}
    return value
