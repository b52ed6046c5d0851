"""The exact top k of importances: against sorting, wherever the sample's guess lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from allo_engine.masking.selection import (
    CHUNK,
    COUNTS_BYTES,
    PIECE,
    SAMPLE_BLOCK,
    SAMPLE_BLOCKS,
    Bracket,
    Patterns,
    Tick,
    count_of,
    masks,
    ones,
    positions,
    thresholds,
)

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Held:
    """Importances in memory."""

    def __init__(self, tensors: Sequence[Values]) -> None:
        self._tensors = {f"weight {place}": values for place, values in enumerate(tensors)}
        self.sizes = {name: len(values) for name, values in self._tensors.items()}

    def patterns(self, name: str, start: int, count: int) -> Patterns:
        return self._tensors[name][start : start + count].view(np.uint32)


def selected(tensors: Sequence[Values], ranks: Sequence[int], tick: Tick = lambda _: None) -> list[Mask]:
    """For each rank the mask over all tensors, one after another."""
    source = Held(tensors)
    found = thresholds(source, ranks, tick)
    pieces = list(masks(source, found, lambda _: None))
    unpacked = [
        np.concatenate([np.unpackbits(bits[rank], count=piece.count) for piece, bits in pieces]) for rank in ranks
    ]
    return [mask.astype(np.bool_) for mask in unpacked]


def by_sorting(tensors: Sequence[Values], rank: int) -> Mask:
    """The definition: sort all, the first in order where two are equal, take k."""
    everything = np.concatenate(tensors)
    mask = np.zeros(len(everything), dtype=np.bool_)
    mask[np.argsort(-everything, kind="stable")[:rank]] = True
    return mask


DENORMAL = float(np.float32(1e-45))
numbers = st.floats(0, float(np.finfo(np.float32).max), width=32) | st.sampled_from([0.0, DENORMAL, 1.0, 2.0])
tensors = st.lists(arrays.arrays(np.float32, st.integers(1, 60), elements=numbers), min_size=1, max_size=5)
shares = st.lists(st.floats(0, 1), min_size=1, max_size=4)


@settings(max_examples=200)
@given(tensors, shares)
@example([np.ones(13, np.float32), np.ones(4, np.float32)], [0.0, 0.5, 1.0])
@example([np.zeros(9, np.float32)], [0.0, 0.4, 1.0])
@example([np.array([0.0, DENORMAL, 2 * DENORMAL], np.float32)], [0.0, 0.34, 1.0])
def test_selects_what_sorting_everything_would(values: list[Values], places: list[float]) -> None:
    total = sum(map(len, values))
    ranks = [1 + round(place * (total - 1)) for place in places]
    for rank, mask in zip(ranks, selected(values, ranks), strict=True):
        assert np.array_equal(mask, by_sorting(values, rank))


@settings(max_examples=200)
@given(
    arrays.arrays(np.float32, st.integers(1, 200), elements=numbers),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
)
def test_a_wrong_guess_costs_two_passes_and_changes_nothing(
    values: Values, place: float, guess: int, sharers: int
) -> None:
    rank = 1 + round(place * (len(values) - 1))
    bracket = Bracket(guess, rank, sharers)
    for _ in range(3 if sharers <= 2 else 4):
        bracket.add(values.view(np.uint32))
        if threshold := bracket.narrow():
            break
    assert threshold is not None
    expected = np.sort(values)[-rank]
    assert threshold.bits == expected.view(np.uint32)
    assert threshold.ties == rank - np.count_nonzero(values > expected)


def test_what_the_sample_does_not_see_is_selected_nevertheless() -> None:
    step = 2 * SAMPLE_BLOCK
    values = np.random.default_rng(0).random(SAMPLE_BLOCKS * step + 5, dtype=np.float32)
    unseen = np.arange(len(values)) % step >= SAMPLE_BLOCK
    values[unseen] += 1000
    rank = len(values) // 3
    counted: list[int] = []
    (mask,) = selected([values], [rank], counted.append)
    assert sum(counted) == 3 * len(values)
    assert np.array_equal(np.sort(values[mask]), np.sort(values)[-rank:])


def test_ties_go_to_the_first_in_order_across_pieces_and_tensors() -> None:
    first, second = np.ones(PIECE + CHUNK + 13, np.float32), np.ones(11, np.float32)
    ranks = [5, CHUNK + 3, PIECE + 1, len(first) + 2]
    for rank, mask in zip(ranks, selected([first, second], ranks), strict=True):
        assert mask[:rank].all()
        assert not mask[rank:].any()


@pytest.mark.parametrize("ratio", [1e-6, 0.001, 0.05, 1 / 3, 0.1, 0.999999, 1.0])
def test_the_count_is_exact_where_scales_differ_by_a_thousand(ratio: float) -> None:
    random = np.random.default_rng(0)
    values = [np.abs(random.normal(size=50_000)).astype(np.float32) * np.float32(1000.0**n) for n in range(3)]
    rank = count_of(ratio, 150_000)
    (mask,) = selected(values, [rank])
    assert mask.sum() == rank
    assert np.array_equal(mask, by_sorting(values, rank))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_the_counts_of_all_ranks_take_a_megabyte_together(ranks: int) -> None:
    brackets = [Bracket(0, rank + 1, ranks) for rank in range(ranks)]
    assert sum(bracket.counts.nbytes for bracket in brackets) <= COUNTS_BYTES == 1_000_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_value_that_is_no_importance_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"weight 1 .*not a finite number"):
        selected([np.ones(3, np.float32), np.array([1.0, bad], np.float32)], [2])


class Halt(Exception):
    pass


def test_what_a_tick_raises_ends_the_selection() -> None:
    def halt(_: int) -> None:
        raise Halt

    with pytest.raises(Halt):
        selected([np.ones(10, np.float32)], [2], halt)


def test_a_ratio_is_the_decimal_number_it_is_written_as() -> None:
    assert [count_of(0.07, 100), count_of(0.1, 30), count_of(0.05, 1000), count_of(1e-9, 10)] == [7, 3, 50, 1]


def test_positions_undo_packing() -> None:
    mask = np.random.default_rng(2).random(1003) < 0.1
    assert np.array_equal(positions(np.packbits(mask), 1003), np.flatnonzero(mask))
    assert ones(np.packbits(mask)) == mask.sum()
