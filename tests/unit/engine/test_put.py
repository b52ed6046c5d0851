"""Large writes go in pieces, and whole."""

from __future__ import annotations

import io

import pytest

from allo_engine.put import PIECE, put


class Counting(io.BytesIO):
    """A stream that remembers how long its writes were."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.lengths.append(len(data))
        return super().write(data)


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 3])
def test_all_of_it_is_written_and_no_piece_is_longer_than_one(size: int) -> None:
    data, stream = bytes(range(256)) * (size // 256) + b"x" * (size % 256), Counting()
    put(stream, memoryview(data))
    assert stream.getvalue() == data
    assert all(length <= PIECE for length in stream.lengths)
