"""Exact global top-k over many tensors, by two radix passes over the float32 bit pattern; and bit masks.

Importance is |Δ| ≥ 0, and the bit pattern of a non-negative float32 grows with its value. So a histogram of the upper
16 bits finds the bin that holds the k-th largest, a histogram of the lower 16 bits inside that bin its exact value, and
ties at that value go to the first in order (tensor name, then position). Nothing but the two histograms (512 kB
each) is held, however many weights there are. Several k cost one more lower histogram each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

import numpy as np
from numpy.typing import NDArray

Importance = NDArray[np.float32]
Bits = NDArray[np.uint8]
Stream = Callable[[], Iterable[tuple[str, Importance]]]
"""Gives the tensors' flat importances, in the same order at each call."""

_BINS = 1 << 16
_CHUNK = 1 << 20


def count_of(ratio: float, total: int) -> int:
    """⌈ratio · total⌉, the ratio taken as the decimal number that it is written as: 0.07 of 100 is 7, not 8."""
    return int((Decimal(repr(ratio)) * total).to_integral_value(ROUND_CEILING))


@dataclass(frozen=True)
class Threshold:
    """Selects what lies above `bits`, and the first `ties` of what equals it."""

    bits: int
    ties: int


def thresholds(stream: Stream, ratios: Iterable[float]) -> tuple[int, list[Threshold]]:
    """The number of weights, and for each ratio the threshold that selects exactly ⌈ratio · N⌉ of them.

    Raises ValueError where an importance is not a number ≥ 0.
    """
    upper = np.zeros(_BINS, dtype=np.int64)
    for bits in _patterns(stream):
        upper += np.bincount(bits >> 16, minlength=_BINS)
    total = int(upper.sum())
    places = [_bin_of(upper, count_of(ratio, total)) for ratio in ratios]
    return total, [_exact(stream, place, rank) for place, rank in places]


def select(importance: Importance, threshold: Threshold) -> tuple[NDArray[np.bool_], Threshold]:
    """One tensor's mask, and the threshold for the tensors behind it: with the ties left that were not yet taken."""
    bits = importance.view(np.int32)
    mask = bits > threshold.bits
    equal = np.flatnonzero(bits == threshold.bits)[: threshold.ties]
    mask[equal] = True
    return mask, Threshold(threshold.bits, threshold.ties - len(equal))


def pack(mask: NDArray[np.bool_]) -> Bits:
    """A mask as bits, eight entries a byte."""
    return np.packbits(mask)


def positions(bits: Bits, size: int) -> NDArray[np.int64]:
    """The flat positions that a bit mask over `size` entries selects, in order."""
    return np.flatnonzero(np.unpackbits(bits, count=size))


def overlap(first: Bits, second: Bits) -> int:
    """How many entries two masks share."""
    return int(np.bitwise_count(first & second).sum())


def _bin_of(histogram: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th largest, and its rank within that bin."""
    above = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(above, rank))
    index = len(histogram) - 1 - place
    return index, rank - int(above[place] - histogram[index])


def _exact(stream: Stream, upper: int, rank: int) -> Threshold:
    lower = np.zeros(_BINS, dtype=np.int64)
    for bits in _patterns(stream):
        inside = bits[(bits >> 16) == upper]
        lower += np.bincount(inside & 0xFFFF, minlength=_BINS)
    low, ties = _bin_of(lower, rank)
    return Threshold((upper << 16) | low, ties)


def _patterns(stream: Stream) -> Iterator[NDArray[np.int32]]:
    """The bit patterns of all tensors, in pieces that fit a cache."""
    for name, importance in stream():
        bits = importance.view(np.int32)
        for start in range(0, len(bits), _CHUNK):
            piece = bits[start : start + _CHUNK]
            if piece.min() < 0 or piece.max() > 0x7F800000:
                raise ValueError(f"importance of {name} holds a value that is not a number ≥ 0")
            yield piece
