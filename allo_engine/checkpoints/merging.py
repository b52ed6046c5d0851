"""A merged checkpoint's file as a stream of bytes, from any offset on, with never a whole weight of it in memory.

A merged file is its base's safetensors file with a delta's values (see delta.py) in one floating-point dtype. Where its
bytes lie follows from the base's header alone, so that its length is known before anything is read. The same recipe
gives the same bytes every time. Free of torch, for the process that serves models.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from allo_engine.checkpoints.coding import Damaged, Entries
from allo_engine.checkpoints.folder import Header, header
from allo_engine.checkpoints.reading import FLOATS, pieces, widened
from allo_engine.checkpoints.writing import header_bytes, narrowed
from allo_engine.report import StageError

Piece = bytes | memoryview


class Source(Protocol):
    """Bytes at rest, of which any part can be read."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, count: int, /) -> bytes | bytearray:
        """`count` bytes from an offset on; what can be written to is the caller's own."""


class File:
    """A file as a Source; a context that holds it open."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, count: int) -> bytes:
        data = os.pread(self._file.fileno(), count, start)
        while len(data) < count:  # the kernel gives at most 2 GiB at once
            more = os.pread(self._file.fileno(), count - len(data), start + len(data))
            if not more:
                raise StageError("bad_model", f"The file {self._file.name} ends early.")
            data += more
        return data

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the merged file: `place` is its offset there, `base` where its stored self lies in the base."""

    name: str
    dtype: str
    stored: str
    values: int
    place: int
    length: int
    base: int


class Merged:
    """The file that a recipe makes of its base and its delta; a Source itself, so that it can be a base in turn.

    Not for several threads: it keeps what it decoded of the weight that was read last.
    """

    def __init__(self, base: Source, delta: Source | None, dtype: str, copies: Mapping[str, str] | None = None) -> None:
        self._base, self._dtype = base, dtype
        self._delta = None if delta is None else _Delta(delta, copies or {})
        entries, begin = _header(base)
        ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"][0])
        layout = {name: _laid_out(entry, dtype) for name, entry in ordered}
        self._head = header_bytes(layout, {"format": "pt"})
        self._tensors, place = [], len(self._head)
        for name, entry in ordered:
            kind, shape, length = layout[name]
            first = begin + entry["data_offsets"][0]
            self._tensors.append(_Tensor(name, kind, entry["dtype"], math.prod(shape), place, length, first))
            place += length
        self.size = place
        self._last: tuple[str, Entries | None] = "", None

    def read(self, start: int, count: int) -> bytes:
        return b"".join(self.stream(start, start + count))

    def stream(self, start: int = 0, end: int | None = None) -> Iterator[Piece]:
        """The bytes from `start` up to, not including, `end`, in pieces. Raises StageError bad_delta or bad_model."""
        end = self.size if end is None else min(end, self.size)
        if start < len(self._head):
            yield self._head[start:end]
        for tensor in self._tensors:
            if max(start, tensor.place) < min(end, tensor.place + tensor.length):
                yield from self._part(tensor, max(start - tensor.place, 0), min(end - tensor.place, tensor.length))

    def _part(self, tensor: _Tensor, start: int, end: int) -> Iterator[Piece]:
        """A tensor's bytes between two offsets in it."""
        if tensor.stored not in FLOATS:  # it stays as it is
            for first, count in pieces(end - start):
                yield memoryview(self._base.read(tensor.base + start + first, count))
            return
        item = tensor.length // tensor.values
        first, last = start // item, -(-end // item)
        for offset, count in pieces(last - first):
            piece = self._piece(tensor, first + offset, count)
            begins = (first + offset) * item
            yield piece[max(start - begins, 0) : end - begins]

    def _piece(self, tensor: _Tensor, first: int, count: int) -> Piece:
        """`count` values of a tensor from the flat position `first` on, as they are stored in the merged file."""
        item = np.dtype(FLOATS[tensor.stored]).itemsize
        raw = self._base.read(tensor.base + first * item, count * item)
        entries = self._entries(tensor)
        changed = None if entries is None else entries.within(first, first + count)
        if tensor.stored == self._dtype and changed is None:
            return memoryview(raw)
        values = widened(np.frombuffer(raw, dtype=np.uint8), tensor.stored)
        if changed is not None:
            values = values if values.flags.writeable else values.copy()
            changed.put_into(values)
        return narrowed(values, self._dtype).data

    def _entries(self, tensor: _Tensor) -> Entries | None:
        if self._delta is None:
            return None
        if self._last[0] != tensor.name:
            self._last = "", None  # let go of it before the next one is decoded
            self._last = tensor.name, self._delta.entries(tensor.name, tensor.values)
        return self._last[1]


class _Delta:
    """A stored delta, of which one weight at a time is decoded."""

    def __init__(self, source: Source, copies: Mapping[str, str]) -> None:
        self._source, self._copies = source, copies
        try:
            self._streams, self._begin = _header(source)
            self._counts: dict[str, int] = json.loads(_metadata(source)["entries"])
        except (ValueError, KeyError, TypeError) as error:
            raise StageError("bad_delta", f"This is no sparse checkpoint: {error}.") from error

    def entries(self, name: str, size: int) -> Entries | None:
        name = self._copies.get(name, name)
        if name not in self._counts:
            return None
        try:
            gaps, values = (self._stream(f"{name}/{kind}") for kind in ("gaps", "values"))
            return Entries(gaps, values, self._counts[name], size)
        except (KeyError, Damaged) as error:
            raise StageError("bad_delta", f"The sparse checkpoint is damaged at weight {name}: {error}.") from error

    def _stream(self, key: str) -> bytes:
        first, last = self._streams[key]["data_offsets"]
        return bytes(self._source.read(self._begin + first, last - first))


def _header(source: Source) -> tuple[Header, int]:
    return header(io.BytesIO(_head(source)))


def _metadata(source: Source) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_head(source)[8:])["__metadata__"]
    return found


def _head(source: Source) -> bytes:
    length = int.from_bytes(source.read(0, 8), "little")
    return bytes(source.read(0, min(8 + length, source.size)))


def _laid_out(entry: Mapping[str, Any], dtype: str) -> tuple[str, list[int], int]:
    """A tensor of the base as the merged file has it: (dtype, shape, bytes)."""
    first, last = entry["data_offsets"]
    if entry["dtype"] not in FLOATS:
        return entry["dtype"], entry["shape"], last - first
    return dtype, entry["shape"], math.prod(entry["shape"]) * np.dtype(FLOATS[dtype]).itemsize
