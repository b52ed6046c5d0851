"""Packing changes no value and no gradient: every claim is held against plain, separate sequences."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from allo_engine.model.attention import NAME
from allo_engine.model.logps import token_logps
from allo_engine.model.sequences import Group, Row, batches, build_row, rows_of, singles
from tests.tiny import tiny_model

PROMPT = [0, 10, 11, 12, 13]


def packing_model() -> LlamaForCausalLM:
    model = tiny_model()
    model.set_attn_implementation(NAME)
    return model


def dense_mask(row: Row) -> Tensor:
    """[L, L] bool: True where query (row) attends to key (column)."""
    place = torch.arange(len(row.ends))
    return (place[None, :] <= place[:, None]) & (place[:, None] < row.ends[None, :])


def responses(count: int, seed: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(5, 261) for _ in range(source.randrange(1, 9))] + [1] for _ in range(count)]


def alone(model: LlamaForCausalLM, prompt: list[int], response: list[int], pad: str | None = None) -> Tensor:
    """logπ of a response's tokens by a plain forward pass, padded on one side if asked."""
    ids = [*prompt, *response]
    before, after = (4, 0) if pad == "left" else (0, 4) if pad == "right" else (0, 0)
    padded = torch.tensor([[1] * before + ids + [1] * after])
    mask = torch.tensor([[0] * before + [1] * len(ids) + [0] * after])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits[0, before : before + len(ids)]
    logps = logits.float().log_softmax(-1)
    places = range(len(prompt) - 1, len(ids) - 1)
    return torch.stack([logps[place, ids[place + 1]] for place in places])


@pytest.mark.parametrize("pad", [None, "left", "right"])
def test_packed_log_probabilities_are_those_of_separate_sequences(pad: str | None) -> None:
    model = packing_model()
    groups = [singles(0, PROMPT, responses(4)), singles(1, [0, 99], responses(3, seed=1))]
    row = build_row(groups)
    parts = row.split(token_logps(model, row))
    for (place, index), logps in parts.items():
        expected = alone(model, list(groups[place].prompt), list(groups[place].responses[index]), pad)
        assert torch.allclose(logps, expected, atol=1e-5)


def test_equal_beginnings_stand_once_and_change_nothing() -> None:
    model = packing_model()
    texts = [[20, 21, 22, 1], [20, 21, 23, 24, 1], [20, 21, 22, 1], [20, 21], [30, 1]]
    groups = [singles(0, PROMPT, texts), singles(1, [*PROMPT[:3], 50], [[20, 1]])]
    row = build_row(groups)
    # the prompt's 5 tokens; 20 21 22, then 23 24 behind 21, then 30; of the other prompt its last token, and 20
    assert row.ids.shape[1] == 5 + 3 + 2 + 1 + 2
    assert groups[0].tokens() == 5 + 3 + 2 + 1
    assert len(row.targets) < sum(map(len, texts)) + 2, "an equal prediction is made once"
    for (place, index), logps in row.split(token_logps(model, row)).items():
        expected = alone(model, list(groups[place].prompt), list(groups[place].responses[index]))
        assert torch.allclose(logps, expected, atol=1e-5)


tokens = st.lists(st.integers(5, 7), min_size=1, max_size=6)


@settings(max_examples=100)
@given(st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=5)), min_size=1, max_size=4))
def test_a_token_attends_to_its_own_sequence_alone(given_groups: list[tuple[list[int], list[list[int]]]]) -> None:
    row = build_row([singles(key, prompt, found) for key, (prompt, found) in enumerate(given_groups)])
    ids, depth, mask = row.ids[0].tolist(), row.positions[0].tolist(), dense_mask(row)
    seen = set()
    for query in range(len(ids)):
        places = torch.nonzero(mask[query])[:, 0].tolist()
        assert [depth[place] for place in places] == list(range(depth[query] + 1))
        seen.add(tuple(ids[place] for place in places))
    assert len(seen) == len(ids), "no sequence of tokens stands twice"
    wanted = {(*prompt, *found[:-1]) for prompt, texts in given_groups for found in texts}
    assert {sequence[: end + 1] for sequence in wanted for end in range(len(sequence))} == seen


def long_groups() -> list[Group]:
    """More tokens than a block holds: a long trunk, branches on branches, small trees side by side."""
    source = random.Random(1)
    trunk = [source.randrange(5, 261) for _ in range(70)]
    stem = [source.randrange(5, 261) for _ in range(90)]
    texts = [[*stem, 7, 8, 1], [*stem, 9, 1], [*stem[:40], *trunk, 1], *responses(6), [*stem, *stem, 1]]
    small = [singles(key, [key, 5, 6], responses(2, key)) for key in range(1, 9)]
    return [singles(0, trunk, texts), singles(99, trunk[:30], responses(3)), *small]


def test_packed_attention_gives_the_values_and_gradients_of_one_sequence_a_row() -> None:
    found = []
    for name in ("sdpa", NAME):
        model = tiny_model()
        model.set_attn_implementation(name)
        logps = token_logps(model, build_row(long_groups()))
        logps.sum().backward()
        found.append((logps, [weight.grad for weight in model.parameters()]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_packed_gradients_are_those_of_separate_sequences() -> None:
    packed, plain = packing_model(), tiny_model()
    group = singles(0, PROMPT, responses(5))
    row = build_row([group])
    token_logps(packed, row).sum().backward()
    torch.stack([alone(plain, PROMPT, list(ids)).sum() for ids in group.responses.values()]).sum().backward()
    for ours, theirs in zip(packed.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_a_problems_responses_never_see_each_other() -> None:
    model = packing_model()
    first, second, other = [20, 21, 22, 1], [30, 31, 1], [40, 41, 42, 43, 1]
    ours = build_row([singles(0, PROMPT, [first, second])])
    changed = build_row([singles(0, PROMPT, [other, second])])
    kept = ours.split(token_logps(model, ours))[0, 1]
    assert torch.allclose(kept, changed.split(token_logps(model, changed))[0, 1], atol=1e-6)


def test_prompt_and_context_are_read_and_never_scored() -> None:
    group = singles(0, PROMPT, [[50, 51, 52, 1]], context=[2])
    row = build_row([group])
    assert row.targets.tolist() == [52, 1]
    model = tiny_model()
    assert torch.allclose(token_logps(model, row), alone(model, PROMPT, [50, 51, 52, 1])[2:], atol=1e-5)


def test_an_item_that_is_longer_than_a_row_has_a_row_of_its_own() -> None:
    groups = [singles(0, PROMPT, [[7] * 50]), singles(1, PROMPT, [[8] * 3])]
    assert sorted(len(row) for row in rows_of(groups, 16)) == [1, 1]


items = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda pair: pair[0] != pair[1]), min_size=1)


@settings(max_examples=100)
@given(st.lists(items, min_size=1, max_size=6), st.integers(10, 120))
def test_rows_hold_every_item_once_longest_first_within_their_budget(
    item_lists: list[list[tuple[int, int]]], budget: int
) -> None:
    texts = responses(6)
    groups = [Group(key, PROMPT, dict(enumerate(texts)), found).only(found) for key, found in enumerate(item_lists)]
    rows = rows_of(groups, budget)
    placed = sorted((group.key, item) for row in rows for group in row for item in group.items)
    assert placed == sorted((group.key, item) for group in groups for item in group.items)
    lengths = [sum(group.tokens() for group in row) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    for row in rows:
        assert sum(group.tokens() for group in row) <= budget or sum(len(group.items) for group in row) == 1
        for group in row:
            assert set(group.responses) == {index for item in group.items for index in item}


def test_batches_are_a_function_of_seed_and_epoch_and_hold_every_problem_once() -> None:
    groups = [singles(key, PROMPT, responses(3, key)) for key in range(20)]
    first = list(batches(groups, 8, seed=5, epoch=0))
    assert first == list(batches(groups, 8, seed=5, epoch=0))
    assert first != list(batches(groups, 8, seed=5, epoch=1))
    assert first != list(batches(groups, 8, seed=6, epoch=0))
    assert sorted(place for batch in first for place in batch) == list(range(20))
    assert all(sum(len(groups[place].items) for place in batch) >= 8 for batch in first[:-1])
