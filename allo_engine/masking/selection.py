"""Exact global top-k over more weights than fit in memory, and bit masks.

Importances are ≥ 0, and the bit pattern of a non-negative float32 grows with its value, so the k-th largest is sought
among integers. A small sample guesses a *bracket* of patterns; a pass counts what lies above it and, pattern by
pattern, what lies inside. If the k-th largest is inside, it is known exactly. Else the bracket moves to where it is,
with bins that are first wide and then one pattern wide: two passes more for one k or two, so that the sample decides
the time and never the result. A last pass makes the masks. Ties at the k-th largest go to the first in order: tensor,
then position.

Held are the counts, at most 1 MB for all k together, and the pieces that the threads work on, however many weights
there are.

Of several ranks each works on its share of the pieces. Their counts are summed, which is exact, and a piece's bits go
to all ranks: the masks are those of one rank to the bit.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from allo_engine.ranks import here
from allo_engine.report import Tick

Patterns = NDArray[np.uint32]
Bits = NDArray[np.uint8]

COUNTS_BYTES = 1_000_000
"""What the counts of all brackets take together."""

PIECE = 1 << 20
"""Weights that a thread takes at once: a multiple of 8, so that a piece's mask is whole bytes."""

CHUNK = 1 << 17
"""Weights that an operation takes at once: few enough for a core's cache, enough to be worth a lock's hand-over."""

SAMPLE_BLOCKS, SAMPLE_BLOCK = 4096, 1024
"""The sample: so many blocks of a page of float32 each, at equal distances through all weights."""

MOST_THREADS = 16
"""More threads would wait for the interpreter's lock, and each holds a few megabytes."""

END = 0x7F800000
"""The first pattern that is no finite number ≥ 0."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Source(Protocol):
    """The importances of a model's weights."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """The number of weights of each tensor, in the order that breaks ties."""

    def patterns(self, name: str, start: int, count: int) -> Patterns:
        """The float32 bit patterns of a tensor's importances from a flat position on. Several threads call it."""


@dataclass(frozen=True)
class Piece:
    """A run of weights of one tensor."""

    name: str
    start: int
    count: int


@dataclass(frozen=True)
class Threshold:
    """Selects what lies above `bits`, and the first `ties` of what equals it."""

    bits: int
    ties: int


def count_of(ratio: float, total: int) -> int:
    """⌈ratio · total⌉, the ratio taken as the decimal number that it is written as: 0.07 of 100 is 7, not 8."""
    return int((Decimal(repr(ratio)) * total).to_integral_value(ROUND_CEILING))


def thresholds(source: Source, ranks: Iterable[int], tick: Tick) -> dict[int, Threshold]:
    """For each rank k the threshold that selects exactly the k largest importances; 1 ≤ k ≤ their number.

    Raises ValueError where an importance is not a finite number ≥ 0.
    """
    guesses = here().firsts(sampled(source, set(ranks)))
    brackets = [Bracket(guess, rank, len(guesses)) for rank, guess in guesses.items()]
    found: dict[int, Threshold] = {}
    while wider := [bracket for bracket in brackets if bracket.rank not in found]:
        _count(source, wider, tick)
        found |= {bracket.rank: threshold for bracket in wider if (threshold := bracket.narrow())}
    return found


def masks(source: Source, found: Mapping[int, Threshold], tick: Tick) -> Iterator[tuple[Piece, dict[int, Bits]]]:
    """What each threshold selects, by its rank, piece by piece in order: a bit a weight, whole bytes a piece."""
    left = {rank: threshold.ties for rank, threshold in found.items()}
    for piece, parts in _pass(source, lambda piece: _reaching(source, piece, found), tick):
        for rank, (reaching, equal) in parts.items():
            left[rank] -= _keep_first(left[rank], equal, reaching)
        yield piece, {rank: reaching for rank, (reaching, _) in parts.items()}


class Bracket:
    """Counts how importances lie in a run of patterns, to find the one of a given rank, from the largest on.

    `sharers` brackets share the memory for counts. Several threads may add.
    """

    def __init__(self, guess: int, rank: int, sharers: int) -> None:
        self.rank = rank
        self.counts = np.zeros(COUNTS_BYTES // 8 // sharers, dtype=np.int64)
        self.above = np.zeros(1, dtype=np.int64)
        self._lock = threading.Lock()
        self._begin(max(0, min(guess, END - 1) - len(self.counts) // 2), width=1)

    def _begin(self, low: int, width: int) -> None:
        """Count anew: bins of `width` patterns each, from `low` on."""
        self._low, self._width = low, width
        self.above[:] = 0
        self._span = min(len(self.counts) * width, END - low)
        self.counts[:] = 0

    def add(self, patterns: Patterns) -> None:
        shifted = patterns - np.uint32(self._low)  # below the bracket it wraps: negative, were it signed
        above = int(np.count_nonzero(shifted.view(np.int32) >= self._span))
        inside = shifted[shifted < self._span] // np.uint32(self._width)
        with self._lock:
            self.above += above
            np.add.at(self.counts, inside.astype(np.intp), 1)

    def narrow(self) -> Threshold | None:
        """When all importances were added: the threshold, if it is known now; else look closer in the next pass."""
        reaching = np.cumsum(self.counts[::-1], out=self.counts[::-1])  # in place: the counts themselves are done with
        wanted = self.rank - int(self.above[0])
        place = int(np.searchsorted(reaching, wanted))  # from the highest bin down
        low = self._low + ((len(reaching) - 1 - place) * self._width)
        if wanted <= 0:
            self._cover(self._low + self._span, END)
        elif wanted > reaching[-1]:
            self._cover(0, self._low)
        elif self._width > 1:
            self._cover(low, low + self._width)
        else:
            return Threshold(low, wanted - (int(reaching[place - 1]) if place else 0))
        return None

    def _cover(self, low: int, high: int) -> None:
        self._begin(low, -(-(high - low) // len(self.counts)))


def sampled(source: Source, ranks: Iterable[int]) -> dict[int, int]:
    """The patterns at the given ranks, as a sample of all importances has them."""
    total = sum(source.sizes.values())
    step = max(SAMPLE_BLOCK, total // SAMPLE_BLOCKS)
    tasks, offset = [], 0
    for name, size in source.sizes.items():
        starts = range(-offset % step, size, step)
        tasks.append([Piece(name, start, min(SAMPLE_BLOCK, size - start)) for start in starts])
        offset += size

    def blocks(pieces: list[Piece]) -> list[Patterns]:
        return [source.patterns(piece.name, piece.start, piece.count) for piece in pieces]

    values = np.concatenate([block for found in in_order(blocks, tasks) for block in found])
    places = {rank: len(values) - max(1, rank * len(values) // total) for rank in ranks}
    values.partition(list(places.values()))
    return {rank: int(values[place]) for rank, place in places.items()}


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Work on items with a thread a core; the results in the items' order. Only a few wait to be taken."""
    threads = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _pass(source: Source, work: Callable[[Piece], Result], tick: Tick) -> Iterator[tuple[Piece, Result]]:
    """Every piece with its result, in order, on every rank: a rank works on its share of them."""
    pieces = [
        Piece(name, start, min(PIECE, size - start))
        for name, size in source.sizes.items()
        for start in range(0, size, PIECE)
    ]
    ranks = here()
    own = in_order(work, pieces[ranks.rank :: ranks.size])
    for start in range(0, len(pieces), ranks.size):
        found = ranks.gathered(next(own, None))  # behind the last piece, nothing
        for piece, result in zip(pieces[start : start + ranks.size], found, strict=False):
            yield piece, cast("Result", result)
            tick(piece.count)


def _chunks(source: Source, piece: Piece) -> Iterator[Patterns]:
    for start in range(0, piece.count, CHUNK):
        yield source.patterns(piece.name, piece.start + start, min(CHUNK, piece.count - start))


def _count(source: Source, brackets: list[Bracket], tick: Tick) -> None:
    """A pass that adds all importances to brackets."""

    def count(piece: Piece) -> None:
        for patterns in _chunks(source, piece):
            if patterns.max() >= END:
                raise ValueError(f"{piece.name} holds a value that is not a finite number ≥ 0")
            for bracket in brackets:
                bracket.add(patterns)

    for _ in _pass(source, count, tick):
        pass
    here().total([torch.from_numpy(counts) for bracket in brackets for counts in (bracket.counts, bracket.above)])


def _reaching(source: Source, piece: Piece, found: Mapping[int, Threshold]) -> dict[int, tuple[Bits, Bits]]:
    """For each threshold, by its rank, the bits of what is at or above it, and of what equals it."""
    parts: dict[int, list[tuple[Bits, Bits]]] = {rank: [] for rank in found}
    for patterns in _chunks(source, piece):
        for rank, threshold in found.items():
            parts[rank].append((np.packbits(patterns >= threshold.bits), np.packbits(patterns == threshold.bits)))
    return {rank: _joined(chunks) for rank, chunks in parts.items()}


def _joined(chunks: list[tuple[Bits, Bits]]) -> tuple[Bits, Bits]:
    reaching, equal = zip(*chunks, strict=True)
    return np.concatenate(reaching), np.concatenate(equal)


def _keep_first(count: int, equal: Bits, mask: Bits) -> int:
    """Take all but the first `count` of the equal ones out of a mask, in place; how many of them stay."""
    found = ones(equal)
    if found > count:
        surplus = np.unpackbits(equal)
        surplus[np.flatnonzero(surplus)[:count]] = 0
        mask ^= np.packbits(surplus)
    return min(found, count)


def positions(bits: Bits, size: int) -> NDArray[np.int64]:
    """The flat positions that a bit mask over `size` entries selects, in order."""
    return np.flatnonzero(np.unpackbits(bits, count=size))


def ones(bits: Bits) -> int:
    """How many entries a bit mask selects."""
    return int(np.bitwise_count(bits).sum())
