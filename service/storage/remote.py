"""Blobs in a bucket, with a folder that keeps those that were used last: a store for any number of machines.

What is written lies in the folder first, is hashed there and then sent: nobody sees it before it is whole, and a try
can be repeated. What is read whole, or in many parts, is brought into the folder; a stream comes from the bucket as it
goes. Every chunk is held against its checksum, wherever it comes from. What lies in the folder is readable while the
server is away.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO

from service.storage import checksums
from service.storage.bucket import PIECE, Bucket, Found, as_blob, as_stored
from service.storage.cache import Cache
from service.storage.checksums import counted, verified, write_out
from service.storage.local import LocalStore, check_name
from service.storage.store import CHUNK, Blob, BlobMissing, Chunk, Corrupt, DiskFull, Stored, Writer

_AT_HAND = PIECE
"""A blob that is no larger is kept once it was opened: it takes one request either way."""


class BucketStore:
    """Safe for many processes on many machines. Fulfils `Under`; every method may raise StoreAway."""

    def __init__(self, bucket: Bucket, cache: Cache) -> None:
        self._bucket, self._cache = bucket, cache
        self._out = _Outgoing(cache.root, self._send)

    @property
    def scratch(self) -> Path:
        return self._cache.scratch

    def writing(self) -> AbstractContextManager[Writer]:
        return self._out.writing()

    def put(self, path: Path) -> Blob:
        return self._out.put(path)

    def take(self, path: Path) -> Blob:
        return self._out.take(path)

    def put_stream(self, chunks: Iterable[bytes]) -> Blob:
        return self._out.put_stream(chunks)

    def open(self, sha256: str, start: int = 0, end: int | None = None, once: bool = False) -> Iterator[Chunk]:
        if not self._cache.use(sha256):
            found = self._find(sha256)
            if found.size > _AT_HAND or not self._bring(found):
                return self._far(found, start, found.size if end is None else min(end, found.size))
        return self._near(sha256, start, end, once)

    def read_back(self, sha256: str) -> Iterator[Chunk]:
        return self._whole(self._find(sha256))

    def fetch(self, sha256: str, destination: Path) -> None:
        if self._cache.use(sha256):
            try:
                return self._cache.fetch(sha256, destination)
            except (BlobMissing, FileNotFoundError):  # it made room for others
                pass
            except Corrupt:
                self._cache.delete(sha256)
        found = self._find(sha256)
        if self._bring(found):
            with suppress(BlobMissing):
                return self._cache.fetch(sha256, destination)
        write_out(self._whole(found), destination)

    def bring(self, sha256: str) -> None:
        if not self._cache.use(sha256):
            self._bring(self._find(sha256))

    def size(self, sha256: str) -> int:
        with suppress(BlobMissing):
            return self._cache.size(sha256)
        return self._find(sha256).size

    def exists(self, sha256: str) -> bool:
        return self._bucket.find("blobs", check_name(sha256)) is not None

    def find(self, sha256: str) -> Stored:
        return as_stored(self._find(sha256))

    def stored(self) -> Iterator[Stored]:
        return map(as_stored, self._bucket.all("blobs"))

    def delete(self, sha256: str, mark: str | None = None) -> bool:
        is_gone = self._bucket.delete("blobs", check_name(sha256), mark)
        if is_gone:
            self._cache.delete(sha256)
        return is_gone

    def set_aside(self, sha256: str, mark: str) -> bool:
        return self.delete(sha256, mark)

    def tidy(self) -> int:
        return self._cache.tidy()

    def note(self, sha256: str, content: bytes) -> None:
        self._bucket.send("recipes", check_name(sha256), content)

    def noted(self, sha256: str) -> bytes | None:
        found = self._bucket.find("recipes", check_name(sha256))
        with suppress(BlobMissing):
            return None if found is None else self._bucket.read(found, 0, found.size)
        return None

    def notes(self) -> Iterator[Stored]:
        return map(as_stored, self._bucket.all("recipes"))

    def forget_note(self, sha256: str, mark: str | None) -> bool:
        return self._bucket.delete("recipes", check_name(sha256), mark)

    def _find(self, sha256: str) -> Found:
        found = self._bucket.find("blobs", check_name(sha256))
        if found is None:
            raise BlobMissing(sha256)
        return found

    def _send(self, path: Path, blob: Blob, sums: array[int]) -> None:
        self._bucket.send("blobs", blob.sha256, path, sums)
        self._cache.trim(blob.size)

    def _bring(self, found: Found) -> bool:
        """Has it in the folder; False where it is too large for that. Raises Corrupt."""
        if not self._cache.takes(found.size):
            return False
        self._cache.trim(found.size)
        try:
            self._cache.put_stream(self._whole(found))
        except DiskFull:
            self._cache.empty()
            return False
        return True

    def _near(self, sha256: str, start: int, end: int | None, once: bool) -> Iterator[Chunk]:
        """From the folder; the rest from the bucket where it leaves the folder meanwhile, or is damaged there."""
        place = start
        try:
            for chunk in self._cache.open(sha256, start, end, once):
                yield chunk
                place += len(chunk)
            return
        except (BlobMissing, FileNotFoundError):
            pass
        except Corrupt:
            self._cache.delete(sha256)
        found = self._find(sha256)
        yield from self._far(found, place, found.size if end is None else min(end, found.size))

    def _whole(self, found: Found) -> Iterator[bytes]:
        """All of it, as its name says, or Corrupt before the end."""
        for chunk in verified(iter(self._bucket.pieces(found, 0, found.size)), found.sha256):
            yield bytes(chunk)

    def _far(self, found: Found, start: int, end: int) -> Iterator[Chunk]:
        """From the bucket; whole chunks are read and held against their checksums."""
        if start >= end:
            return iter(())
        if found.size <= CHUNK:  # its checksum is not kept
            return iter((b"".join(self._whole(found))[start:end],))
        return self._checked(found, start, end)

    def _checked(self, found: Found, start: int, end: int) -> Iterator[Chunk]:
        sums, place = self._sums(found), start - start % CHUNK
        for piece in self._bucket.pieces(found, place, min(-(-end // CHUNK) * CHUNK, found.size)):
            for chunk in (piece[at : at + CHUNK] for at in range(0, len(piece), CHUNK)):
                if checksums.of(chunk) != sums[place // CHUNK]:
                    sums = self._count(found)
                    if checksums.of(chunk) != sums[place // CHUNK]:
                        raise Corrupt(found.sha256)
                yield chunk[max(start - place, 0) : end - place]
                place += len(chunk)

    def _sums(self, found: Found) -> array[int]:
        """The checksums of the blob's chunks: those that were kept, where they are whole."""
        kept = self._bucket.sums(found)
        return kept if len(kept) == -(-found.size // CHUNK) else self._count(found)

    def _count(self, found: Found) -> array[int]:
        """Works the checksums out from the blob, and keeps them. Raises Corrupt."""
        blob, sums = counted(self._bucket.pieces(found, 0, found.size))
        if blob != as_blob(found):
            raise Corrupt(found.sha256)
        self._bucket.note_sums(found, sums)
        return sums


class _Outgoing(LocalStore):
    """The folder's other side: what gets its name here was sent before."""

    def __init__(self, root: Path, send: Callable[[Path, Blob, array[int]], None]) -> None:
        super().__init__(root)
        self._send = send

    def publish(self, aside: Path, file: IO[bytes], blob: Blob, sums: array[int]) -> None:
        self._send(aside, blob, sums)
        super().publish(aside, file, blob, sums)
