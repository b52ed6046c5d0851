"""A checksum for every chunk of a blob, so that a part of it can be trusted without reading the whole.

CRC-32C finds what disks do to bytes, at a tenth of the time of a hash, for processors have an instruction for it. The
blob's name stays its sha256.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google_crc32c import extend

from allo_engine.put import put
from service.storage.store import CHUNK, Blob, Chunk, Corrupt


class Checksums:
    """Counts along as bytes come, in pieces of any size."""

    def __init__(self) -> None:
        self._done = array("I")
        self._current = self._filled = 0

    def update(self, data: bytes) -> None:
        while data:
            piece, data = data[: CHUNK - self._filled], data[CHUNK - self._filled :]
            self._current = extend(self._current, piece)
            self._filled += len(piece)
            if self._filled == CHUNK:
                self._close()

    def values(self) -> array[int]:
        """One for each chunk, the last of which may be shorter. Nothing may come after."""
        if self._filled:
            self._close()
        return self._done

    def _close(self) -> None:
        self._done.append(self._current)
        self._current = self._filled = 0


def of(chunk: bytes) -> int:
    """The checksum of a chunk."""
    return int(extend(0, chunk))


def written(values: array[int]) -> bytes:
    """As they are kept: four bytes each, little-endian."""
    return _little(values).tobytes()


def read(content: bytes) -> array[int]:
    values = array("I")
    values.frombytes(content[: len(content) // 4 * 4])
    return _little(values)


def counted(chunks: Iterator[bytes]) -> tuple[Blob, array[int]]:
    """What the chunks are together, and the checksums of its chunks as they are kept."""
    digest, sums, size = hashlib.sha256(), Checksums(), 0
    for chunk in chunks:
        digest.update(chunk)
        sums.update(chunk)
        size += len(chunk)
    return Blob(digest.hexdigest(), size), sums.values()


def read_file(path: Path, start: int = 0) -> Generator[bytes]:
    """A file's content from `start` on, chunk by chunk."""
    with path.open("rb") as file:
        file.seek(start)
        yield from iter(lambda: file.read(CHUNK), b"")


def verified(chunks: Iterator[Chunk], sha256: str) -> Iterator[Chunk]:
    """Holds each chunk back until the next is read, so that a corrupt blob never ends as if it were whole."""
    digest = hashlib.sha256()
    held: Chunk = b""
    for chunk in chunks:
        digest.update(chunk)
        if held:
            yield held
        held = chunk
    if digest.hexdigest() != sha256:
        raise Corrupt(sha256)
    if held:
        yield held


def write_out(chunks: Iterator[Chunk], destination: Path) -> None:
    """A new file of the chunks, read-only; none where they do not come to their end."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with destination.open("xb") as file:
        try:
            for chunk in chunks:
                put(file, chunk)
            os.fchmod(file.fileno(), 0o400)
        except BaseException:
            destination.unlink()
            raise


def ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, each made in a thread of its own while the one before is used."""
    with ThreadPoolExecutor(1) as hand:
        coming = hand.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = hand.submit(next, chunks, None)
            yield chunk


def _little(values: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return values
    swapped = array("I", values)
    swapped.byteswap()
    return swapped
