"""A rank's rows for its device, step after step, built in a thread while the device is at work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from allo_engine.model.ahead import ahead, to_device
from allo_engine.model.logps import PerToken
from allo_engine.model.sequences import Group, Row, build_row, rows_of
from allo_engine.ranks import here
from allo_engine.training.objectives import Logps


@dataclass(frozen=True)
class Packed:
    """A row on the device, its groups, and what is `given` of its M scored tokens: float32 [G, M]."""

    groups: Sequence[Group]
    row: Row
    given: Tensor

    def by_group(self, logps_R: Tensor) -> Iterator[tuple[Group, Logps, Sequence[Logps]]]:
        """Each group with the log-probabilities of its scored tokens, and with what is given of them."""
        parts = [self.row.split(logps_R), *map(self.row.cut, self.given)]
        for place, group in enumerate(self.groups):
            logps, *given = ({index: part[place, index] for index in group.responses} for part in parts)
            yield group, logps, given


def cut(batch: Sequence[Group], budget: int) -> list[list[Group]]:
    """A batch's rows, for all ranks: so short that each rank has some, if that can be."""
    return rows_of(batch, min(budget, -(-_tokens(batch) // here().size)))


def _tokens(groups: Sequence[Group]) -> int:
    return sum(group.tokens() for group in groups)


class Feed:
    """The rows of a training's batches; `given` is what its objective wants to know of each scored token."""

    def __init__(self, batches: Sequence[Sequence[Group]], given: Sequence[PerToken], device: torch.device) -> None:
        self._batches, self._given, self._device, self._ranks = batches, given, device, here()
        self._ahead = ahead(self._from(0, 0))  # a generator: it begins when it is first asked
        self._next: tuple[int, int] | None = None
        """The step and the budget that what is ahead begins with."""

    def rows(self, step: int, budget: int) -> Iterator[Packed]:
        """A step's rows of at most `budget` tokens, the longest first.

        Behind a step's last row the next step's are begun. What was built for another step or budget is let go.
        """
        if self._next != (step, budget):
            self.close()
            self._ahead = ahead(self._from(step, budget))
        self._next = None
        while (packed := next(self._ahead)) is not None:
            yield packed
        self._next = step + 1, budget

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()

    def _from(self, step: int, budget: int) -> Iterator[Packed | None]:
        for batch in self._batches[step:]:
            yield from (self._packed(groups) for groups in self._ranks.share(cut(batch, budget), _tokens))
            yield None  # the step's end

    def _packed(self, groups: Sequence[Group]) -> Packed:
        row = build_row(groups, self._device)
        members = [(groups[place].key, index) for place, index, _ in row.parts]
        given = [torch.cat([values[member] for member in members]) for values in self._given]
        given_GM = torch.stack(given) if given else torch.empty(0, len(row.members))
        return Packed(groups, row, to_device(given_GM, self._device))
