"""Per-token log-probabilities of responses, kept by (weights, ids).

The reference of a warm-up has scored what token rewards and forgetting need again, and sampling has scored it before:
whoever computes a log-probability in float32 leaves it in a file that the stages on a machine share. What a stage uses
of it stands in its own work folder, too, for the last bits depend on who computed it.

In 16 bits nothing is shared. There a log-probability depends, by up to some tenths of a nat, on how it was computed:
whether float32 weights are rounded for each product or once for all, and what else stood in the row. So a stage keeps
what it computed for itself, in its own work folder.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo_engine.bases import Precision
from allo_engine.model.loading import dtype_of
from allo_engine.model.logps import PerToken, Reader, computing, everyones, score_rows
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group, rows_of
from allo_engine.ranks import here
from allo_engine.shelf import Shelf


class LogpCache:
    """Log-probabilities under one model's weights, on a shelf.

    `weights` names the weights, as `folder.fingerprint` does; `shared` is the folder that stages on a machine share,
    `own` the stage's own.
    """

    def __init__(self, shared: Path, own: Path, weights: str, precision: Precision) -> None:
        dtype = dtype_of(precision)
        self.precision, self.is_shared = precision, dtype == torch.float32
        self._own = Shelf(own / "logps.db")
        self._shelf = Shelf(shared / "logps.db") if self.is_shared else self._own
        self._name = f"{weights}/{dtype}/".encode()

    def read(self, groups: Iterable[Group]) -> PerToken:
        """What is known of the groups' responses."""
        keys = {(group.key, index): self._key(group, index) for group in groups for index in group.responses}
        found = self._own.read(keys)
        if self.is_shared:
            found |= self._shelf.read({name: key for name, key in keys.items() if name not in found})
        return {name: torch.from_numpy(np.frombuffer(kept, np.float32).copy()) for name, kept in found.items()}

    def write(self, groups: Iterable[Group], logps: Mapping[tuple[int, int], Tensor]) -> None:
        """Keep all of it or, where the process dies, nothing: a resumed run must not mix two runs' roundings."""
        self._shelf.write(self._rows(groups, logps))

    def take(self, groups: Iterable[Group], logps: Mapping[tuple[int, int], Tensor]) -> None:
        """Make what the stage uses its own: a run that is resumed on another machine finds nothing else there."""
        self._own.write(self._rows(groups, logps))

    def _rows(self, groups: Iterable[Group], logps: Mapping[tuple[int, int], Tensor]) -> dict[bytes, bytes]:
        return {
            self._key(group, index): logps[group.key, index].numpy().astype(np.float32).tobytes()
            for group in groups
            for index in group.responses
            if (group.key, index) in logps
        }

    def _key(self, group: Group, index: int) -> bytes:
        response = group.responses[index]
        lengths = [len(group.prompt), len(response) - len(group.scored(index))]
        return hashlib.sha256(self._name + array("q", [*lengths, *group.prompt, *response]).tobytes()).digest()


Cut = Callable[[Sequence[Group], int], Sequence[Sequence[Group]]]
"""Groups into rows of at most so many tokens."""


def responses_apart(groups: Sequence[Group], budget: int) -> list[list[Group]]:
    """Rows that hold each response once, whatever pairs it is in."""
    return rows_of([group.only([(index,) for index in group.responses]) for group in groups], budget)


def known_or_scored(
    load: Callable[[], PreTrainedModel],
    groups: Sequence[Group],
    cache: LogpCache,
    budget: RowBudget,
    tick: Callable[[int, int], None],
    cut: Cut = responses_apart,
    reader_of: Callable[[PreTrainedModel], Reader | None] = lambda _: None,
) -> PerToken:
    """logπ of every response under a model: what the cache knows, and a forward pass for the rest, if there is any.

    `tick` is told of the tokens done, and of all that have to be done. All ranks share both, and all have the result.
    `reader_of` gives who takes rows through the model, if not this process.
    """
    known = everyones(cache.read(groups) if here().leads else {})
    missing = [left for group in groups if (left := _unknown(group, known))]
    if not missing:
        if here().leads:
            cache.take(groups, known)
        return known

    def attempt(tokens: int) -> PerToken:
        rows = cut(missing, tokens)
        total, tally = sum(group.tokens() for row in rows for group in row), here().tally()
        return score_rows(model, rows, lambda tokens: tick(tally(tokens), total), reader)

    model = load()
    reader = reader_of(model)
    with computing(model, cache.precision):
        found = everyones(budget.fit(attempt, missing))
    if here().leads:
        cache.write(missing, found)
        cache.take(groups, {**known, **found})
    return {**known, **found}


def _unknown(group: Group, known: PerToken) -> Group | None:
    """The group as it is where nothing of it is known, else with the responses that are not."""
    items = [(index,) for index in group.responses if (group.key, index) not in known]
    return group if len(items) == len(group.responses) else group.only(items) if items else None
