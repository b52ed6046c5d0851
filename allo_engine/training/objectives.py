"""What the trained stages minimise: a loss of `losses.py` over a group, its divisor, and figures to report.

Nothing here reads a number off the device: figures stay scalars there, and what is known beforehand (counts) is counted
on the host, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from allo_engine.model.logps import PerToken
from allo_engine.model.sequences import Group
from allo_engine.training import losses
from allo_engine.training.figures import Figures

Logps = Mapping[int, Tensor]
"""A number for each scored token of a response, by the response's number in its group: logπ, or what is given."""

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of one pair, from the per-token log-ratios d of its chosen [T] and rejected [R] response."""


class Objective(Protocol):
    """What a stage minimises, a group at a time."""

    @property
    def given(self) -> Sequence[PerToken]:
        """What it has to know of each scored token beside logπ; it is brought to the device with a row."""

    def weight(self, group: Group) -> float:
        """What the group adds to the batch's divisor: its tokens, pairs or non-zero weights."""

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[Tensor, Figures]:
        """The group's loss, summed, and figures to report."""


class CrossEntropy:
    """The mean cross-entropy over all scored tokens of a batch."""

    given: Sequence[PerToken] = ()

    def weight(self, group: Group) -> float:
        return sum(len(group.scored(index)) for index in group.responses)

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[Tensor, Figures]:  # noqa: ARG002 - an Objective
        return torch.stack([losses.sft(values) for values in logps.values()]).sum(), {}


class PairObjective:
    """The mean of a pair loss over a batch's pairs, and `nll` times that of the chosen responses' mean negative
    log-likelihood; with the accuracy and margin of the implicit reward βΣd.
    """

    def __init__(self, reference: PerToken, beta: float, loss: PairLoss, nll: float = 0.0) -> None:
        self.given = (reference,)
        self._beta, self._loss, self._nll = beta, loss, nll

    def weight(self, group: Group) -> float:
        return len(group.items)

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[Tensor, Figures]:
        (reference,) = given
        ratios = {index: values - reference[index] for index, values in logps.items()}
        sums = {index: values.detach().sum() for index, values in ratios.items()}
        pairs = group.items
        total = torch.stack([self._loss(ratios[chosen], ratios[rejected]) for chosen, rejected in pairs]).sum()
        nll = torch.stack([losses.mean_nll(logps[chosen]) for chosen, _ in pairs]).sum()
        if self._nll:
            total = total + self._nll * nll
        chosen_P, rejected_P = (torch.stack([sums[pair[side]] for pair in pairs]) for side in (0, 1))
        return total, {**reward_figures(chosen_P, rejected_P, self._beta), "chosen_nll": (nll, len(pairs))}


class TokenNpo:
    """ALLO's forgetting loss over wrong responses; the divisor is the batch's number of non-zero weights."""

    def __init__(self, reference: PerToken, weights: PerToken, beta: float) -> None:
        self.given = (reference, weights)
        self._beta, self._weighted = beta, _weighted(weights)

    def weight(self, group: Group) -> float:
        return sum(self._weighted[group.key, index] for index in group.responses)

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[Tensor, Figures]:
        reference, weights = given
        terms = [losses.token_npo(values, reference[i], weights[i], self._beta) for i, values in logps.items()]
        ratios = [((values.detach() - reference[i]) * (weights[i] != 0)).sum() for i, values in logps.items()]
        return torch.stack(terms).sum(), {"forgotten_log_ratio": (torch.stack(ratios).sum(), self.weight(group))}


class SimNpo:
    """SimNPO over wrong responses; the divisor is the batch's number of responses with a weighted token."""

    def __init__(self, weights: PerToken, beta: float, gamma: float) -> None:
        self.given = (weights,)
        self._beta, self._gamma, self._weighted = beta, gamma, _weighted(weights)

    def weight(self, group: Group) -> float:
        return sum(self._weighted[group.key, index] > 0 for index in group.responses)

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[Tensor, Figures]:
        (weights,) = given
        terms = [losses.simnpo(values, weights[i], self._beta, self._gamma) for i, values in logps.items()]
        forgotten = [(values.detach() * (weights[i] != 0)).sum() for i, values in logps.items()]
        tokens = sum(self._weighted[group.key, index] for index in logps)
        return torch.stack(terms).sum(), {"forgotten_logp": (torch.stack(forgotten).sum(), tokens)}


def reward_figures(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Figures:
    """Accuracy and margin of the implicit reward βΣd over pairs' log-ratios, as (sum, count); a tie is half right."""
    margins_P = beta * (chosen_P - rejected_P)
    right_P = (margins_P.sign() + 1) / 2
    return {"reward_accuracy": (right_P.sum(), len(margins_P)), "reward_margin": (margins_P.sum(), len(margins_P))}


def _weighted(weights: PerToken) -> dict[tuple[int, int], int]:
    """How many tokens of each response have a weight."""
    return {response: int(weights_T.count_nonzero()) for response, weights_T in weights.items()}
