"""Rows are built beside the device: in order, with what goes wrong told, and without a thread left behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from allo_engine.model.ahead import ahead
from allo_engine.model.sequences import Group, build_row, rows_of, singles
from allo_engine.training.feed import Feed, Packed

CPU = torch.device("cpu")


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")}


def counting(made: list[int], most: int, fails_at: int | None = None) -> Iterator[int]:
    for number in range(most):
        if number == fails_at:
            raise ValueError(number)
        made.append(number)
        yield number


def test_items_come_in_order_and_few_are_made_before_they_are_wanted() -> None:
    made: list[int] = []
    with closing(ahead(counting(made, 10), depth=2)) as items:
        assert next(items) == 0
        assert threads(), "a thread is at work"
        assert list(items) == list(range(1, 10))
    assert made == list(range(10))
    assert not threads()


def test_who_ends_early_leaves_no_thread_and_little_made_in_vain() -> None:
    made: list[int] = []
    with closing(ahead(counting(made, 1000), depth=2)) as items:
        assert [next(items), next(items)] == [0, 1]
    assert not threads()
    assert len(made) <= 5


def test_what_goes_wrong_is_raised_where_the_item_was_due() -> None:
    found = []
    with pytest.raises(ValueError, match="3"):  # noqa: PT012 - the items before it are the claim
        for number in ahead(counting([], 10, fails_at=3)):
            found.append(number)
    assert found == [0, 1, 2]
    assert not threads()


def batches() -> list[list[Group]]:
    source = random.Random(0)
    ids = lambda: [source.randrange(5, 99) for _ in range(source.randrange(2, 9))]  # noqa: E731
    return [[singles(key + 10 * step, ids(), [ids(), ids()]) for key in range(6)] for step in range(3)]


def same(packed: Packed, groups: list[Group], numbers: dict[tuple[int, int], torch.Tensor]) -> bool:
    row = build_row(groups)
    given = torch.cat([numbers[groups[place].key, index] for place, index, _ in row.parts])
    return (
        packed.groups == groups
        and torch.equal(packed.row.ids, row.ids)
        and torch.equal(packed.row.members, row.members)
        and torch.equal(packed.given, given[None])
    )


def test_rows_of_any_step_and_budget_are_what_is_asked_for_with_what_is_given() -> None:
    steps = batches()
    groups = [group for batch in steps for group in batch]
    numbers = {(g.key, i): torch.randn(len(ids)) for g in groups for i, ids in g.responses.items()}
    with closing(Feed(steps, [numbers], CPU)) as feed:
        for step, budget in [(0, 40), (1, 40), (2, 20), (2, 40), (0, 30), (1, 30)]:  # memory is short; a way back
            found = list(feed.rows(step, budget))
            expected = rows_of(steps[step], budget)
            assert all(same(*pair, numbers) for pair in zip(found, expected, strict=True))
        interrupted = feed.rows(0, 20)
        next(interrupted)
        assert len(list(feed.rows(0, 10))) == len(rows_of(steps[0], 10)), "what was begun is let go"
    assert not threads()


def test_what_is_given_comes_by_group_and_response() -> None:
    (batch, *_) = batches()
    numbers = {(g.key, i): torch.randn(len(ids)) for g in batch for i, ids in g.responses.items()}
    with closing(Feed([batch], [numbers, numbers], CPU)) as feed:
        for packed in feed.rows(0, 40):
            own = torch.zeros(len(packed.row.targets))
            for group, logps, (first, second) in packed.by_group(own):
                assert set(logps) == set(first) == set(group.responses)
                for index in group.responses:
                    assert torch.equal(first[index], numbers[group.key, index])
                    assert torch.equal(second[index], numbers[group.key, index])
