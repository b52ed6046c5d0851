"""What an artifact store is: blobs named by the sha256 of their content.

A name that is the content's hash makes writing idempotent, sharing free, and every flipped bit visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from allo_engine.checkpoints.recipe import Recipe

CHUNK = 2**20
"""Bytes read, hashed or checked at a time."""

Chunk = bytes | memoryview
"""A piece of a content."""


@dataclass(frozen=True)
class Blob:
    """A stored content: its name and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Stored:
    """A blob as it lies there. `mark` changes each time that the same content is stored again, and so does `at`: Unix
    seconds by the clock of whoever stored it, 0 where that is not known."""

    sha256: str
    size: int
    mark: str
    at: float = 0.0


class StoreError(Exception):
    """A blob that cannot be had. `sha256` names it."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"{type(self).__name__}: {sha256}")
        self.sha256 = sha256

    def __reduce__(self) -> tuple[type[StoreError], tuple[str]]:
        return type(self), (self.sha256,)


class BlobMissing(StoreError):
    """The store holds no such blob."""


class Corrupt(StoreError):
    """The stored bytes are not those that were written."""


class Made(Protocol):
    """A content that is made while it is read. Its bytes are the same every time."""

    @property
    def size(self) -> int: ...

    def open(self, start: int, end: int, /) -> Iterator[Chunk]:
        """The bytes from `start` up to, not including, `end`. Raises Corrupt where what it is made of is damaged."""


class DiskFull(OSError):
    """There was no room: nothing of what was being stored is left."""


class StoreAway(OSError):
    """The store is out of reach, or refuses us. Nothing is known of what was asked; nothing of what was being stored is
    visible. To be tried again."""


class Writer(Protocol):
    """A blob on its way in: hashed as it is written. Without `commit` it leaves nothing."""

    def write(self, data: bytes, /) -> int:
        """Adds bytes; returns how many."""

    def commit(self) -> Blob:
        """Stores what was written; returns only once it would survive a power cut."""


class Store(Protocol):
    """A place for blobs. Every method may be called from many threads and processes at once; those that write raise
    DiskFull. All may raise StoreAway, within a time that is set, where the store is on another machine."""

    def writing(self) -> AbstractContextManager[Writer]:
        """A new blob, written piece by piece."""

    @property
    def scratch(self) -> Path:
        """A folder on the store's own disk, for what must be written before it can be read."""

    def put(self, path: Path) -> Blob:
        """Stores a copy of the file at `path`; returns only once it would survive a power cut."""

    def take(self, path: Path) -> Blob:
        """Stores the file at `path`, which nothing writes to any more: like `put`, but without a second copy where the
        file can be shared. It may be read-only from then on."""

    def put_stream(self, chunks: Iterable[bytes]) -> Blob:
        """Stores bytes as they come, in bounded memory."""

    def derive(self, blob: Blob, recipe: Recipe) -> None:
        """Names a content by its recipe instead of storing it: it is made anew whenever it is opened or fetched. What
        it is made of is kept as long as it is."""

    def recipe(self, sha256: str) -> Recipe | None:
        """How a content is made that was named by its recipe; None of one that lies there itself."""

    def recast(self, sha256: str, dtype: str) -> Made:
        """A safetensors file with its floating-point numbers in another dtype, as safetensors names it (BF16). Raises
        BlobMissing or Corrupt."""

    def open(self, sha256: str, start: int = 0, end: int | None = None, once: bool = False) -> Iterator[Chunk]:
        """The bytes from `start` up to, not including, `end`. `once`: hardly anybody reads it again, so it need not
        push out of memory what others read. Raises BlobMissing at once; Corrupt before a damaged chunk."""

    def read_back(self, sha256: str) -> Iterator[Chunk]:
        """All of it as it lies in the store itself, whatever is kept of it at hand: to find out whether it is whole.
        Raises BlobMissing; Corrupt before the end of a damaged one."""

    def fetch(self, sha256: str, destination: Path) -> None:
        """Puts the blob at `destination`, read-only, after verifying it. Raises BlobMissing or Corrupt."""

    def size(self, sha256: str) -> int:
        """The size in bytes. Raises BlobMissing."""

    def exists(self, sha256: str) -> bool:
        """Whether the store holds the blob."""

    def find(self, sha256: str) -> Stored:
        """The blob as it lies there. Raises BlobMissing."""

    def stored(self) -> Iterator[Stored]:
        """Every blob that there is."""

    def made_of(self, sha256: str) -> list[str]:
        """The contents that this one is made of when it is read, and that must stay as long as it does."""

    def delete(self, sha256: str, mark: str | None = None) -> bool:
        """Removes the blob where it is there, and, with a `mark`, where nobody has stored it again since it had that;
        whether it did."""

    def set_aside(self, sha256: str, mark: str) -> bool:
        """Takes a damaged blob out of use, where nobody has stored it again since it had that mark: from then on the
        store holds it no more, until it is stored again; whether it did. In a folder its bytes stay for people to look
        at, a month or until a whole one is there."""

    def tidy(self) -> int:
        """Removes what writers that died have left, and what was set aside long enough; how many files."""


def lines_of(chunks: Iterator[Chunk]) -> Iterator[bytes]:
    """The lines of a content, as it is read; each ends in a newline, which is left out."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
