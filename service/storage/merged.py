"""Contents that are made when they are read: a model's weights, merged from its base's and a sparse checkpoint.

    <root>/recipes/ab/abcd…    how the content of this sha256 is made, and its size: JSON

They are opened, fetched and named by their sha256 like any blob, and take no more room than what they are made of.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allo_engine.report import StageError
from service.storage.checksums import ahead, verified
from service.storage.local import LocalStore, _mark, _sync_folder
from service.storage.store import Blob, BlobMissing, Chunk, Corrupt, Made, Stored

if TYPE_CHECKING:  # numpy comes with it: who merges nothing does not wait for that
    from allo_engine.checkpoints.merging import Merged, Recipe, Source


class MergingStore(LocalStore):
    """A local store that holds such contents too. Fulfils `Store`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._recipes = root / "recipes"
        self._recipes.mkdir(mode=0o700, exist_ok=True)

    def derive(self, blob: Blob, recipe: Recipe) -> None:
        path = self._recipe_path(blob.sha256)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        aside = path.with_name(f"{uuid.uuid4().hex}.tmp")
        with aside.open("x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o400)
            json.dump({"bytes": blob.size, **recipe.fields()}, file)
            file.flush()
            os.fsync(file.fileno())
        with self._locked(fcntl.LOCK_SH):
            aside.replace(path)
        _sync_folder(path.parent)
        _sync_folder(self._recipes)

    def recipe(self, sha256: str) -> Recipe | None:
        from allo_engine.checkpoints.merging import Recipe

        return Recipe.of(self._recipe(sha256)) if self._is_made(sha256) else None

    def recast(self, sha256: str, dtype: str) -> Made:
        from allo_engine.checkpoints.merging import Merged

        return _Made(sha256, Merged(self._source(sha256), None, dtype))

    def open(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[Chunk]:
        if not self._is_made(sha256):
            return super().open(sha256, start, end)
        size = self.size(sha256)
        end = size if end is None else min(end, size)
        return ahead(_Made(sha256, self._merged(sha256)).open(start, end))

    def fetch(self, sha256: str, destination: Path) -> None:
        if not self._is_made(sha256):
            super().fetch(sha256, destination)
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        with destination.open("xb") as file:
            for chunk in verified(self.open(sha256), sha256):
                file.write(chunk)
            os.fchmod(file.fileno(), 0o400)

    def size(self, sha256: str) -> int:
        return int(self._recipe(sha256)["bytes"]) if self._is_made(sha256) else super().size(sha256)

    def exists(self, sha256: str) -> bool:
        if not self._is_made(sha256):
            return super().exists(sha256)
        return all(map(self.exists, _parts(self._recipe(sha256))))

    def stored(self) -> Iterator[Stored]:
        yield from super().stored()
        for path in self._recipes.glob("*/*"):
            with suppress(FileNotFoundError, BlobMissing):
                yield Stored(path.name, self.size(path.name), _mark(path.stat()))

    def made_of(self, sha256: str) -> list[str]:
        if not self._recipe_path(sha256).exists():
            return []
        parts = _parts(self._recipe(sha256))
        return [*parts, *(deeper for part in parts for deeper in self.made_of(part))]

    def delete(self, sha256: str, mark: str | None = None) -> bool:
        """What others are made of stays until they are deleted."""
        path = self._recipe_path(sha256)
        with suppress(FileNotFoundError), self._locked(fcntl.LOCK_EX):
            if mark in (None, _mark(path.stat())):
                path.unlink()
                return True
        if any(sha256 in _parts(json.loads(other.read_text())) for other in self._recipes.glob("*/*")):
            return False
        return super().delete(sha256, mark)

    def _source(self, sha256: str) -> Source:
        if self._is_made(sha256):
            return self._merged(sha256)
        return _Stored(LocalStore.size(self, sha256), partial(LocalStore.open, self, sha256))

    def _merged(self, sha256: str) -> Merged:
        from allo_engine.checkpoints.merging import Merged, Recipe

        recipe = Recipe.of(self._recipe(sha256))
        delta = None if recipe.delta is None else self._source(recipe.delta)
        return Merged(self._source(recipe.base), delta, recipe.dtype, recipe.copies)

    def _is_made(self, sha256: str) -> bool:
        """Whether it has a recipe and no bytes of its own."""
        return not super().exists(sha256) and self._recipe_path(sha256).exists()

    def _recipe(self, sha256: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._recipe_path(sha256).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BlobMissing(sha256) from None
        return found

    def _recipe_path(self, sha256: str) -> Path:
        return self._recipes / self._path(sha256).relative_to(self._blobs)


@dataclass(frozen=True)
class _Stored:
    """A blob as a Source: each chunk that is read is held against its checksum."""

    size: int
    open: Callable[[int, int], Iterator[Chunk]]

    def read(self, start: int, count: int) -> bytearray:
        return bytearray().join(self.open(start, start + count))


class _Made:
    """Fulfils `Made`."""

    def __init__(self, sha256: str, merged: Merged) -> None:
        self.size = merged.size
        self._sha256, self._merged = sha256, merged

    def open(self, start: int, end: int) -> Iterator[Chunk]:
        try:
            yield from self._merged.stream(start, end)
        except StageError as error:  # what it is made of does not fit together
            raise Corrupt(self._sha256) from error


def _parts(recipe: dict[str, Any]) -> list[str]:
    return [part for part in (recipe["base"], recipe["delta"]) if part is not None]
