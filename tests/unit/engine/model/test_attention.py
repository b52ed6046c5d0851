"""What a row's tokens attend to, in blocks and in FlexAttention's tiles, is what a mask of all pairs shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from allo_engine.model.attention import Forest, attend, block_mask, blocks_of
from allo_engine.model.sequences import Group, Row, build_row, singles
from tests.unit.engine.model.test_sequences import long_groups

ALLOWED: dict[str, tuple[Callable[..., Any], int | None]] = {
    "full": (causal_mask_function, None),
    "window 5": (sliding_window_causal_mask_function(5), 5),
    "window 200": (sliding_window_causal_mask_function(200), 200),
    "chunk 7": (chunked_causal_mask_function(7, torch.zeros(1, dtype=torch.long)), 7),
}


def dense(row: Row, kind: str) -> Tensor:
    """[L, L] bool, by the letter: descent in the row, and the kind's rule at the tokens' own positions."""
    place, position = torch.arange(len(row.ends)), row.positions[0]
    seen = (place[None, :] <= place[:, None]) & (place[:, None] < row.ends[None, :])
    far = position[:, None] - position[None, :]
    if kind.startswith("window"):
        seen &= far < int(kind.split()[1])
    if kind.startswith("chunk"):
        seen &= position[:, None] // 7 == position[None, :] // 7
    return seen


def forest_of(row: Row) -> Forest:
    return Forest(row.ends, row.positions[0])


def shown(row: Row, kind: str, size: int = 128) -> Tensor:
    seen = torch.zeros(len(row.ends), len(row.ends), dtype=torch.bool)
    for block in blocks_of(forest_of(row), ALLOWED[kind][0], size):
        queries, keys = torch.nonzero(block.bias == 0, as_tuple=True)
        seen[queries + block.start, block.keys[keys]] = True
    return seen


def test_blocks_cover_a_row_and_are_far_fewer_than_its_pairs() -> None:
    row = build_row(long_groups())
    blocks = blocks_of(forest_of(row))
    assert [place for block in blocks for place in range(block.start, block.stop)] == list(range(row.ids.shape[1]))
    assert len(blocks) > 6
    assert sum(block.bias.numel() for block in blocks) < 0.5 * row.ids.shape[1] ** 2
    near = blocks_of(forest_of(row), ALLOWED["window 5"][0])
    assert sum(len(block.keys) for block in near) < sum(len(block.keys) for block in blocks), "what is far is not read"


@pytest.mark.parametrize("kind", ALLOWED)
def test_blocks_see_what_the_mask_shows(kind: str) -> None:
    row = build_row(long_groups())
    assert torch.equal(shown(row, kind), dense(row, kind))


tokens = st.lists(st.integers(5, 7), min_size=1, max_size=6)
forests = st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=5)), min_size=1, max_size=4)


@settings(max_examples=100)
@given(forests, st.integers(1, 9), st.sampled_from(["full", "window 5", "chunk 7"]))
def test_blocks_of_any_size_see_what_the_mask_shows(
    given_groups: list[tuple[list[int], list[list[int]]]], size: int, kind: str
) -> None:
    row = build_row([singles(key, prompt, found) for key, (prompt, found) in enumerate(given_groups)])
    assert torch.equal(shown(row, kind, size), dense(row, kind))


def longer_groups() -> list[Group]:
    """Several of FlexAttention's tiles, some whole, some empty."""
    return [*long_groups(), singles(100, range(300), [[7, 8], [9] * 200])]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", ALLOWED)
def test_flex_attention_sees_what_the_mask_shows(kind: str) -> None:
    row = build_row(longer_groups())
    query, key, value = torch.randn(3, 1, 2, len(row.ends), 16, generator=torch.Generator().manual_seed(0))
    found = flex_attention(query, key, value, block_mask=block_mask(forest_of(row), *ALLOWED[kind]))
    assert torch.allclose(found, scaled_dot_product_attention(query, key, value, dense(row, kind)), atol=1e-5)


MORE: list[dict[str, Any]] = [{}, {"scaling": 0.3}, {"softcap": 2.0}, {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])}]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
@pytest.mark.parametrize("kind", ALLOWED)
@pytest.mark.parametrize("more", MORE)
def test_attending_by_a_block_mask_gives_what_blocks_give(kind: str, more: dict[str, Any]) -> None:
    """What a GPU computes and what a CPU does: heads that share keys, a scale, scores that are capped, and sinks."""
    row, random = build_row(longer_groups()), torch.Generator().manual_seed(0)
    forest, length = forest_of(row), len(row.ends)
    query = torch.randn(1, 4, length, 16, generator=random)
    key, value = torch.randn(2, 1, 2, length, 16, generator=random)
    allowed, window = ALLOWED[kind]
    with torch.compiler.set_stance("force_eager"):
        found, _ = attend(torch.nn.Module(), query, key, value, block_mask(forest, allowed, window), **more)
    expected, _ = attend(torch.nn.Module(), query, key, value, blocks_of(forest, allowed), **more)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["full", "window 200"])
def test_tiles_are_those_that_torch_finds_by_all_pairs(kind: str) -> None:
    row = build_row(longer_groups())
    seen, length = dense(row, kind), len(row.ends)
    theirs = create_block_mask(lambda _b, _h, query, key: seen[query, key], None, None, length, length, device="cpu")
    ours = block_mask(forest_of(row), *ALLOWED[kind])
    if kind == "full":
        assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
        assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
        assert theirs.full_kv_num_blocks.sum() > 0
    read = ours.kv_num_blocks + ours.full_kv_num_blocks
    needed = theirs.kv_num_blocks + theirs.full_kv_num_blocks
    assert (read >= needed).all()
    assert read.sum() < 0.7 * ours.kv_num_blocks.shape[-1] ** 2
