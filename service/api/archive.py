"""Several files as one uncompressed tar, made while it is read, from any offset on, to the same bytes every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.api.download import Opened
from service.storage.store import Chunk

_BLOCK = 512


@dataclass(frozen=True)
class Part:
    """A file: `tag` names its content."""

    name: str
    size: int
    opened: Opened
    tag: str


def held_part(name: str, data: bytes) -> Part:
    """A small file that is in memory."""
    return Part(name, *_held(data), hashlib.sha256(data).hexdigest())


class Archive:
    """A tar of these files, in their order."""

    def __init__(self, parts: Sequence[Part]) -> None:
        import tarfile  # here: few ask for one

        self._pieces: list[tuple[int, Opened]] = []
        for part in parts:
            header = tarfile.TarInfo(part.name)
            header.size, header.mode = part.size, 0o644
            self._pieces += [
                _held(header.tobuf(tarfile.GNU_FORMAT)),
                (part.size, part.opened),
                _held(bytes(-part.size % _BLOCK)),
            ]
        self._pieces.append(_held(bytes(2 * _BLOCK)))
        self.size = sum(size for size, _ in self._pieces)
        self.tag = hashlib.sha256(json.dumps([[part.name, part.tag] for part in parts]).encode()).hexdigest()

    def open(self, start: int, end: int) -> Iterator[Chunk]:
        """The bytes from `start` up to, not including, `end`."""
        place = 0
        for size, opened in self._pieces:
            if max(start, place) < min(end, place + size):
                yield from opened(max(start - place, 0), min(end - place, size))
            place += size


def _held(data: bytes) -> tuple[int, Opened]:
    return len(data), lambda start, end: iter((data[start:end],))
