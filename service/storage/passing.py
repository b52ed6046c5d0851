"""Bytes that hardly anybody needs again, past the page cache: what they would push out of memory stays there, and the
kernel has less to do. What is in the cache already is read from there. Where a kernel (Linux before 6.14) or a file
system has no way, all goes through the cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

from allo_engine.put import PIECE
from service.storage.store import CHUNK

_RWF_DONTCACHE = 0x80
"""Of preadv2(2) and pwritev2(2); Python has no name for it yet."""


def write(file: IO[bytes], data: bytes, place: int, cached: bool) -> None:
    """Writes at a place of a file that has no buffer; `cached` is for what is read next: it goes through the cache."""
    left = memoryview(data)
    while left:
        count = _done(os.pwritev, file, left[:PIECE] if cached else left, place, cached)
        left, place = left[count:], place + count


def read(path: Path, start: int = 0) -> Generator[bytes]:
    """A file's content from `start` on, chunk by chunk."""
    room = memoryview(bytearray(CHUNK))
    with path.open("rb") as file:
        while size := _filled(file, room, start):
            yield bytes(room[:size])
            start += size


def _filled(file: IO[bytes], room: memoryview, place: int) -> int:
    """Bytes that were read: fewer than there is room for at the file's end alone."""
    size = 0
    while size < len(room) and (count := _done(os.preadv, file, room[size:], place + size)):
        size += count
    return size


def _done(call: Callable[..., int], file: IO[bytes], data: memoryview, place: int, cached: bool = False) -> int:
    try:
        return call(file.fileno(), [data], place, 0 if cached else _RWF_DONTCACHE)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return call(file.fileno(), [data], place)
