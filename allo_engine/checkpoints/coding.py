"""Masked entries as bytes: ascending places as gaps, float32 values as differences of bit patterns, both deflated.

Places: the gap of an entry is the number of entries skipped since the one before it (since the start, for the first).
A gap g is written as ⌊g / 255⌋ bytes of 255 and one byte g mod 255.

Values: `ordered` maps a float32's bits to an int32 that grows with the value: b where b ≥ 0, else b ⊕ 0x7FFFFFFF; so
−0.0 is −1 and neighbours differ by 1, across zero too. The difference d = ordered(trained) − ordered(base) modulo 2³²
is exact whatever the two are, and small where training moved the weight little. As zigzag, z = (d << 1) ⊕ (d >> 31), it
is written as four planes of a byte an entry: first all lowest bytes, last all highest, which are nearly all 0.

Deflate is zlib's (RFC 1950), by Huffman codes and runs alone (Z_RLE): matches at a distance find nothing here.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Floats = NDArray[np.float32]

_ESCAPE = 255

_BLOCK = 1 << 13
"""Bytes of coded places between two that can be decoded from."""


class Damaged(ValueError):
    """Bytes that no encoder wrote."""


def encode_places(places_K: Places) -> bytes:
    """Ascending flat positions ≥ 0. Raises ValueError where they do not ascend."""
    gaps = np.diff(places_K, prepend=-1) - 1
    if len(gaps) and gaps.min() < 0:
        raise ValueError("positions must be ≥ 0 and ascend, each named once")
    escapes, rest = np.divmod(gaps, _ESCAPE)
    coded = np.full(len(gaps) + int(escapes.sum()), _ESCAPE, dtype=np.uint8)
    coded[np.cumsum(escapes + 1) - 1] = rest
    return _deflate(coded)


def decode_places(data: bytes, count: int, size: int) -> Places:
    """`count` positions in a weight of `size` entries. Raises Damaged; inflates to no more than `size` bytes."""
    coded = np.frombuffer(_inflate(data, size), dtype=np.uint8)
    ends = coded != _ESCAPE  # each entry's last byte
    found = int(np.count_nonzero(ends))
    if found != count or (len(coded) and not ends[-1]):
        raise Damaged(f"it holds {found} places, not {count}")
    places: Places = np.cumsum(coded, dtype=np.int64)[ends]
    places += np.arange(count)
    if count and places[-1] >= size:
        raise Damaged(f"a place lies at {places[-1]}, behind the weight's end at {size}")
    return places


def encode_values(trained_K: Floats, base_K: Floats) -> bytes:
    """Trained values, by how far their bits are from the base's."""
    difference = _ordered(_bits(trained_K)) - _ordered(_bits(base_K))
    zigzag = (difference << 1) ^ (difference >> 31)
    return _deflate(np.ascontiguousarray(zigzag.astype("<i4").view(np.uint8).reshape(-1, 4).T))


def decode_values(data: bytes, base_K: Floats) -> Floats:
    """The trained values of K entries, from their base values. Raises Damaged; inflates to no more than 4K bytes."""
    coded = _inflate(data, 4 * len(base_K))
    if len(coded) != 4 * len(base_K):
        raise Damaged(f"it holds {len(coded)} bytes of values, not {4 * len(base_K)}")
    return _moved(base_K, np.frombuffer(coded, dtype=np.uint8).reshape(4, -1))


class Entries:
    """A weight's entries, of which any part is decoded when it is wanted.

    Held are the inflated streams: a little over one byte an entry of places, four of values. Raises Damaged as the
    functions above do.
    """

    def __init__(self, gaps: bytes, values: bytes, count: int, size: int) -> None:
        if not 0 < count <= size:
            raise Damaged(f"{count} entries do not fit its {size}")
        self._coded = np.frombuffer(_inflate(gaps, size), dtype=np.uint8)
        starts = np.arange(0, len(self._coded), _BLOCK)
        ends = np.add.reduceat(self._coded != _ESCAPE, starts, dtype=np.int64)
        steps = np.add.reduceat(self._coded, starts, dtype=np.int64)
        self._numbers = np.concatenate(([0], np.cumsum(ends)))  # how many entries end before each block
        self._places = np.concatenate(([0], np.cumsum(steps))) + self._numbers  # and where the next may lie at first
        if self._numbers[-1] != count or self._coded[-1] == _ESCAPE:
            raise Damaged(f"it holds {self._numbers[-1]} places, not {count}")
        if self._places[-1] > size:
            raise Damaged(f"a place lies at {self._places[-1] - 1}, behind the weight's end at {size}")
        planes = _inflate(values, 4 * count)
        if len(planes) != 4 * count:
            raise Damaged(f"it holds {len(planes)} bytes of values, not {4 * count}")
        self._planes = np.frombuffer(planes, dtype=np.uint8).reshape(4, -1)

    def within(self, start: int, end: int) -> Part | None:
        """The entries in [start, end), where there are any."""
        left = max(int(np.searchsorted(self._places, start, side="right")) - 1, 0)
        right = int(np.searchsorted(self._places, end, side="left"))
        coded = self._coded[left * _BLOCK : right * _BLOCK]
        found_K = np.cumsum(coded, dtype=np.int64)[coded != _ESCAPE]
        found_K += np.arange(self._places[left] - start, self._places[left] - start + len(found_K))
        low, high = np.searchsorted(found_K, (0, end - start))
        if low == high:
            return None
        number = int(self._numbers[left])
        return Part(found_K[low:high], self._planes[:, number + low : number + high])


@dataclass(frozen=True)
class Part:
    """The entries of a piece of a weight: where they lie in it [K] and the planes of their values [4, K]."""

    places: Places
    planes: NDArray[np.uint8]

    def put_into(self, values: Floats) -> None:
        """Set the piece, its base values, to what was trained there."""
        values[self.places] = _moved(values[self.places], self.planes)


def _moved(base_K: Floats, planes: NDArray[np.uint8]) -> Floats:
    """The trained values, from their base values and the four planes [4, K] of how far they are from them."""
    zigzag = np.ascontiguousarray(planes.T).view("<u4").reshape(-1).astype(np.uint32, copy=False)
    difference = ((zigzag >> 1) ^ -(zigzag & 1)).view(np.int32)
    difference += _ordered(_bits(base_K))
    return _ordered(difference).view(np.float32)


def _bits(values: Floats) -> NDArray[np.int32]:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.int32)


def _ordered(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """The bits in the order of their values; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _deflate(data: NDArray[np.uint8]) -> bytes:
    stream = zlib.compressobj(level=1, memLevel=9, strategy=zlib.Z_RLE)
    return stream.compress(data.data) + stream.flush()


def _inflate(data: bytes, limit: int) -> bytes:
    """Raises Damaged where it is no whole zlib stream of at most `limit` bytes."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, limit + 1)  # a byte of room, so that the checksum behind the last is read
    except zlib.error as error:
        raise Damaged(str(error)) from error
    if len(found) > limit or not stream.eof or stream.unused_data:
        raise Damaged("its length is wrong")
    return found
