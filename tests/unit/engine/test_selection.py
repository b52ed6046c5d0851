from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from allo_engine.selection import Importance, count_of, overlap, pack, positions, select, thresholds

Tensors = dict[str, Importance]


def masks_of(tensors: Tensors, *ratios: float) -> list[dict[str, np.ndarray]]:
    def stream() -> Iterator[tuple[str, Importance]]:
        yield from tensors.items()

    _, found = thresholds(stream, ratios)
    masks: list[dict[str, np.ndarray]] = []
    for threshold in found:
        masks.append({})
        for name, importance in tensors.items():
            masks[-1][name], threshold = select(importance, threshold)
    return masks


def by_sorting(tensors: Tensors, ratio: float) -> np.ndarray:
    """The definition: sort all, the first in order where two are equal, take ⌈ρN⌉."""
    everything = np.concatenate(list(tensors.values()))
    mask = np.zeros(len(everything), dtype=bool)
    mask[np.argsort(-everything, kind="stable")[: count_of(ratio, len(everything))]] = True
    return mask


importances = st.lists(
    arrays.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(0, 1e10, width=32) | st.sampled_from([0.0, 1.0, 2.0])
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(importances, st.floats(0.0001, 1.0))
def test_selects_what_sorting_everything_would(values: list[Importance], ratio: float) -> None:
    tensors = {str(place): value for place, value in enumerate(values)}
    (mask,) = masks_of(tensors, ratio)
    assert np.array_equal(np.concatenate(list(mask.values())), by_sorting(tensors, ratio))


@pytest.mark.parametrize("ratio", [1e-6, 0.001, 0.05, 1 / 3, 0.1, 0.999999, 1.0])
def test_the_count_is_exact_where_scales_differ_by_a_thousand(ratio: float) -> None:
    random = np.random.default_rng(0)
    tensors = {str(n): np.abs(random.normal(size=50_000)).astype(np.float32) * 1000.0**n for n in range(3)}
    (mask,) = masks_of(tensors, ratio)
    assert sum(int(part.sum()) for part in mask.values()) == count_of(ratio, 150_000)


def test_ties_are_broken_by_order_the_same_way_each_time() -> None:
    tensors = {"a": np.ones(10, dtype=np.float32), "b": np.ones(10, dtype=np.float32)}
    first, again = masks_of(tensors, 0.6, 0.6)
    assert first["a"].all()
    assert first["b"].tolist() == [True] * 2 + [False] * 8
    assert all(np.array_equal(first[name], again[name]) for name in tensors)


def test_the_smaller_mask_lies_within_the_larger() -> None:
    tensors = {"a": np.random.default_rng(1).random(10_000, dtype=np.float32)}
    small, large = masks_of(tensors, 0.05, 0.1)
    assert not (small["a"] & ~large["a"]).any()
    assert overlap(pack(small["a"]), pack(large["a"])) == 500


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_a_value_that_is_no_importance_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"weight.*not a number"):
        masks_of({"weight": np.array([1.0, bad], dtype=np.float32)}, 0.5)


def test_a_ratio_is_the_decimal_number_it_is_written_as() -> None:
    assert [count_of(0.07, 100), count_of(0.1, 30), count_of(0.05, 1000), count_of(1e-9, 10)] == [7, 3, 50, 1]


def test_packing_and_positions_are_inverse() -> None:
    mask = np.random.default_rng(2).random(1003) < 0.1
    assert np.array_equal(positions(pack(mask), 1003), np.flatnonzero(mask))
