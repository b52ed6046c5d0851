"""What TRL's trainers are given, and when: the engine's items and order, whatever processes and passes take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

from allo_engine.bases_trained import BaselineConfig
from allo_engine.model.logps import PerToken
from allo_engine.model.sequences import Group, batches
from allo_engine.report import StageError
from allo_engine.training.loop import MOST_PLANNED
from allo_engine.training.optimizer import learning_rate

UNSCORED = -100
"""The label of a token that is read and not predicted, as transformers has it."""


@dataclass(frozen=True)
class Item:
    """What TRL is given of an item of a group: its columns.

    `tokens` are those of all its sequences, `width` those of the longest; `weight` is its part in a mean: what trains
    nothing has none.
    """

    columns: Mapping[str, Any]
    tokens: int
    sequences: int
    width: int
    weight: int = 1

    @property
    def padded(self) -> int:
        """The tokens that it takes in a pass with others as long."""
        return self.sequences * self.width


class Plan:
    """Which items each step takes: a pure function of seed, epoch and step."""

    def __init__(self, groups: Sequence[Group], items: Sequence[Item], config: BaselineConfig) -> None:
        if config.n_epochs * len(items) > MOST_PLANNED:
            raise StageError(
                "too_many_steps",
                f"{config.n_epochs} epochs of {len(items)} items are more than {MOST_PLANNED:,}: lower n_epochs.",
            )
        self.items, self.config = items, config
        self.steps_an_epoch = -(-len(items) // config.batch_size)
        self.steps = config.n_epochs * self.steps_an_epoch
        self.tokens_an_epoch = sum(item.tokens for item in items)
        self.order = cache(lambda epoch: _order(groups, config, epoch))

    def places(self, step: int) -> list[int]:
        """Where among the items those of a step's batch stand."""
        epoch, inside = divmod(step, self.steps_an_epoch)
        first = inside * self.config.batch_size
        return self.order(epoch)[first : first + self.config.batch_size]

    def batch(self, step: int) -> list[Item]:
        return [self.items[place] for place in self.places(step)]

    def weight(self, step: int) -> int:
        return sum(item.weight for item in self.batch(step))

    def nothing(self) -> Item:
        """What a process goes through that has no item left while others have: all take equally many passes."""
        shortest = min(self.items, key=lambda item: item.padded)
        columns = dict(shortest.columns)
        if "labels" in columns:
            columns["labels"] = [UNSCORED] * len(columns["labels"])
        return replace(shortest, columns=columns, weight=0)

    def tokens_before(self, step: int) -> int:
        epoch, inside = divmod(step, self.steps_an_epoch)
        steps = range(step - inside, step)
        return epoch * self.tokens_an_epoch + sum(item.tokens for one in steps for item in self.batch(one))

    def rate(self, step: int) -> float:
        return learning_rate(self.config, step, self.steps)


def _order(groups: Sequence[Group], config: BaselineConfig, epoch: int) -> list[int]:
    """One epoch's items, as places: the engine's own order of the groups, and each group's own."""
    first = list(accumulate((len(group.items) for group in groups), initial=0))
    order = (place for batch in batches(groups, config.batch_size, config.seed, epoch) for place in batch)
    return [item for place in order for item in range(first[place], first[place + 1])]


def bare(group: Group, item: tuple[int, ...]) -> Item:
    """An item without what is in it."""
    lengths = [len(group.prompt) + len(group.responses[index]) for index in item]
    return Item({}, sum(lengths), len(lengths), max(lengths))


def pair(group: Group, item: tuple[int, ...], reference: PerToken) -> Item:
    columns: dict[str, Any] = {"prompt_ids": list(group.prompt)}
    for side, index in zip(("chosen", "rejected"), item, strict=True):
        columns[f"{side}_ids"] = list(group.responses[index])
        columns[f"ref_{side}_logps"] = float(reference[group.key, index].sum())
    return replace(bare(group, item), columns=columns)


def example(group: Group, item: tuple[int, ...]) -> Item:
    (index,) = item
    scored = group.scored(index)
    ids = [*group.prompt, *group.responses[index]]
    labels = [UNSCORED] * (len(ids) - len(scored)) + list(scored)
    return replace(bare(group, item), columns={"input_ids": ids, "labels": labels}, weight=len(scored))


def passes_of(batch_size: int, ranks: int, padded: int, tokens: int) -> int:
    """The fewest passes in which processes go through a batch, so many tokens at most at once, of items that are all
    `padded` to as many.
    """
    return -(-batch_size // (ranks * max(1, tokens // padded)))


def parts(batch: Sequence[int], passes: int, ranks: int) -> list[list[Sequence[int]]]:
    """A batch's items by pass and rank, in parts that differ by one item at most."""
    edges = [len(batch) * part // (passes * ranks) for part in range(passes * ranks + 1)]
    found = [batch[first:last] for first, last in pairwise(edges)]
    return [found[number * ranks : (number + 1) * ranks] for number in range(passes)]
