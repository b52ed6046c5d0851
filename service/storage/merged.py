"""Contents that are made when they are read: a model's weights, merged from its base's and a sparse checkpoint.

They are opened, fetched and named by their sha256 like any blob, and take no more room than what they are made of: a
note says how each is made, and its size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from allo_engine.checkpoints.recipe import Recipe
from allo_engine.report import StageError
from service.storage.checksums import ahead, verified, write_out
from service.storage.store import Blob, BlobMissing, Chunk, Corrupt, Made, Stored, Writer

if TYPE_CHECKING:  # numpy comes with it: who merges nothing does not wait for that
    from allo_engine.checkpoints.merging import Merged, Source


_UNKNOWN: Mapping[str, Any] = {"bytes": 0, "base": None, "delta": None}
"""What a damaged recipe says, and what every recipe has."""


class Under(Protocol):
    """Where the bytes lie: blobs as a `Store` has them, and a small note beside each content that has one."""

    def writing(self) -> AbstractContextManager[Writer]: ...
    @property
    def scratch(self) -> Path: ...
    def put(self, path: Path) -> Blob: ...
    def take(self, path: Path) -> Blob: ...
    def put_stream(self, chunks: Iterable[bytes]) -> Blob: ...
    def open(self, sha256: str, start: int = 0, end: int | None = None, once: bool = False) -> Iterator[Chunk]: ...
    def read_back(self, sha256: str) -> Iterator[Chunk]: ...
    def fetch(self, sha256: str, destination: Path) -> None: ...
    def size(self, sha256: str) -> int: ...
    def exists(self, sha256: str) -> bool: ...
    def find(self, sha256: str) -> Stored: ...
    def stored(self) -> Iterator[Stored]: ...
    def delete(self, sha256: str, mark: str | None = None) -> bool: ...
    def set_aside(self, sha256: str, mark: str) -> bool: ...
    def tidy(self) -> int: ...

    def bring(self, sha256: str) -> None:
        """Makes it quick to read many parts of the blob. Raises BlobMissing or Corrupt, or lets whoever reads find
        out."""

    def note(self, sha256: str, content: bytes) -> None:
        """Keeps the note; returns only once it would survive a power cut."""

    def noted(self, sha256: str) -> bytes | None:
        """The note, where there is one."""

    def notes(self) -> Iterator[Stored]:
        """Every note: the content that it is on, its own size, its mark."""

    def forget_note(self, sha256: str, mark: str | None) -> bool:
        """As `delete` does with a blob."""


class MergingStore:
    """Blobs and such contents. Fulfils `Store`."""

    def __init__(self, under: Under) -> None:
        self._under = under
        self._known: dict[tuple[str, str], dict[str, Any]] = {}  # recipes by name and mark

    @property
    def scratch(self) -> Path:
        return self._under.scratch

    def writing(self) -> AbstractContextManager[Writer]:
        return self._under.writing()

    def put(self, path: Path) -> Blob:
        return self._under.put(path)

    def take(self, path: Path) -> Blob:
        return self._under.take(path)

    def put_stream(self, chunks: Iterable[bytes]) -> Blob:
        return self._under.put_stream(chunks)

    def tidy(self) -> int:
        return self._under.tidy()

    def derive(self, blob: Blob, recipe: Recipe) -> None:
        self._under.note(blob.sha256, json.dumps({"bytes": blob.size, **recipe.fields()}).encode())

    def recipe(self, sha256: str) -> Recipe | None:
        made = self._made(sha256)
        return None if made is None else Recipe.of(made)

    def recast(self, sha256: str, dtype: str) -> Made:
        from allo_engine.checkpoints.merging import Merged

        return _Made(sha256, Merged(self._source(sha256), None, dtype))

    def open(self, sha256: str, start: int = 0, end: int | None = None, once: bool = False) -> Iterator[Chunk]:
        made = self._made(sha256)
        if made is None:
            return self._under.open(sha256, start, end, once)
        size = int(made["bytes"])
        end = size if end is None else min(end, size)
        return ahead(_Made(sha256, self._merged(made)).open(start, end))

    def read_back(self, sha256: str) -> Iterator[Chunk]:
        """What is made of others is made; they are read back by their own names."""
        return self._under.read_back(sha256) if self._made(sha256) is None else verified(self.open(sha256), sha256)

    def fetch(self, sha256: str, destination: Path) -> None:
        if self._made(sha256) is None:
            self._under.fetch(sha256, destination)
        else:
            write_out(verified(self.open(sha256), sha256), destination)

    def size(self, sha256: str) -> int:
        made = self._made(sha256)
        return self._under.size(sha256) if made is None else int(made["bytes"])

    def exists(self, sha256: str) -> bool:
        if self._under.exists(sha256):
            return True
        with suppress(Corrupt):
            made = self._noted(sha256)
            return made is not None and all(map(self.exists, _parts(made)))
        return False

    def find(self, sha256: str) -> Stored:
        with suppress(BlobMissing):
            return self._under.find(sha256)
        for note, recipe in self._recipes():
            if note.sha256 == sha256:
                return Stored(sha256, int(recipe["bytes"]), note.mark, note.at)
        raise BlobMissing(sha256)

    def stored(self) -> Iterator[Stored]:
        yield from self._under.stored()
        for note, recipe in self._recipes():
            yield Stored(note.sha256, int(recipe["bytes"]), note.mark, note.at)

    def made_of(self, sha256: str) -> list[str]:
        parts: list[str] = []
        with suppress(Corrupt):
            parts = _parts(self._noted(sha256) or _UNKNOWN)
        return [*parts, *(deeper for part in parts for deeper in self.made_of(part))]

    def delete(self, sha256: str, mark: str | None = None) -> bool:
        """What others are made of stays until they are deleted."""
        if self._under.forget_note(sha256, mark):
            return True
        if any(sha256 in _parts(recipe) for _, recipe in self._recipes()):
            return False
        return self._under.delete(sha256, mark)

    def set_aside(self, sha256: str, mark: str) -> bool:
        return self._under.set_aside(sha256, mark) or self._under.forget_note(sha256, mark)

    def _source(self, sha256: str) -> Source:
        made = self._made(sha256)
        if made is not None:
            return self._merged(made)
        self._under.bring(sha256)
        return _Stored(self._under.size(sha256), partial(self._under.open, sha256))

    def _merged(self, made: dict[str, Any]) -> Merged:
        from allo_engine.checkpoints.merging import Merged

        recipe = Recipe.of(made)
        delta = None if recipe.delta is None else self._source(recipe.delta)
        return Merged(self._source(recipe.base), delta, recipe.dtype, recipe.copies)

    def _made(self, sha256: str) -> dict[str, Any] | None:
        """How it is made, where it has no bytes of its own; None of a blob. Raises BlobMissing."""
        try:
            self._under.size(sha256)
        except BlobMissing:
            made = self._noted(sha256)
            if made is None:
                raise
            return made
        return None

    def _noted(self, sha256: str) -> dict[str, Any] | None:
        note = self._under.noted(sha256)
        if note is None:
            return None
        try:
            recipe = dict(json.loads(note))
            return {name: recipe[name] for name in _UNKNOWN} | recipe
        except (ValueError, KeyError, TypeError):  # not what was written
            raise Corrupt(sha256) from None

    def _recipes(self) -> Iterator[tuple[Stored, dict[str, Any]]]:
        """Every note with what it says, which is read once."""
        known, self._known = self._known, {}
        for note in self._under.notes():
            try:
                recipe = known.get((note.sha256, note.mark)) or self._noted(note.sha256)
            except Corrupt:
                recipe = dict(_UNKNOWN)
            if recipe is not None:
                self._known[note.sha256, note.mark] = recipe
                yield note, recipe


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


def _parts(recipe: Mapping[str, Any]) -> list[str]:
    return [part for part in (recipe["base"], recipe["delta"]) if part is not None]
