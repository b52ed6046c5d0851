"""Reading a checkpoint's tensors piece by piece: plain reads into small arrays, so that nothing is mapped or kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from allo_engine.checkpoints.folder import header, weight_files
from allo_engine.report import StageError

FLOATS: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""What weights are stored in, by safetensors' name; of bfloat16, its bits."""

_PIECE = 1 << 20

_PAGE = 4096


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's values lie. `offset` counts bytes from the file's beginning."""

    file: BinaryIO
    offset: int
    dtype: str
    shape: tuple[int, ...]
    length: int
    """Bytes."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def numbers(self) -> bool:
        """Whether `read` can read it: it is stored as floating-point numbers of a known kind."""
        return self.dtype in FLOATS

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """`count` values from a flat position on, as float32: exactly the stored numbers."""
        if not self.numbers:
            known = ", ".join(FLOATS)
            raise StageError("bad_model", f"A weight is stored as {self.dtype}; what can be trained is {known}.")
        item = np.dtype(FLOATS[self.dtype]).itemsize
        return widened(self.read_bytes(start * item, count * item), self.dtype)

    def read_bytes(self, start: int, count: int) -> NDArray[np.uint8]:
        room = _room(count, self.offset + start)
        self._fill(room.data, self.offset + start)
        return room

    def _fill(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            count = os.preadv(self.file.fileno(), [buffer], offset)
            if not count:
                raise StageError("bad_model", f"The weights file {self.file.name} ends early: copy it again.")
            buffer, offset = buffer[count:], offset + count


def widened(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Stored numbers as float32, exactly; a view of the same memory where they are stored so."""
    stored = raw.view(FLOATS[dtype])
    if dtype == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _room(size: int, offset: int) -> NDArray[np.uint8]:
    """Memory for `size` bytes of a file from `offset` on, half a page apart from where they lie in the file's pages.

    Some processors (AMD's Zen 3 and 4, "rep movsb") copy five times slower to an address that lies up to 31 bytes
    behind the source's within a page.
    """
    room = np.empty(size + _PAGE, dtype=np.uint8)
    begin = (offset + _PAGE // 2 - room.ctypes.data) % _PAGE
    return room[begin : begin + size]


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """A weight's flat positions cut into (start, count)."""
    return ((start, min(_PIECE, size - start)) for start in range(0, size, _PIECE))


def same_values(first: StoredTensor, second: StoredTensor) -> bool:
    return first.shape == second.shape and all(
        np.array_equal(first.read(*piece), second.read(*piece)) for piece in pieces(first.size)
    )


class Checkpoint:
    """A checkpoint's tensors by name, in the order of names; a context that holds its files open."""

    def __init__(self, folder: Path) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        files: dict[Path, dict[str, StoredTensor]] = {}
        with ExitStack() as opened:  # closes them where a file is damaged
            for name, path in weight_files(folder):
                if path not in files:
                    files[path] = _tensors(opened.enter_context(path.open("rb")))
                self.tensors[name] = files[path][name]
            self._open = opened.pop_all()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def _tensors(file: BinaryIO) -> dict[str, StoredTensor]:
    entries, begin = header(file)
    found = {}
    for name, entry in entries.items():
        first, last = entry["data_offsets"]
        found[name] = StoredTensor(file, begin + first, entry["dtype"], tuple(entry["shape"]), last - first)
    return found
