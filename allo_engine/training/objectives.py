"""What the trained stages minimise: a loss of `losses.py` over a group, its divisor, and figures to report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from allo_engine.model.sequences import Group
from allo_engine.training import losses
from allo_engine.training.loop import Figures, Logps

PerToken = Mapping[tuple[int, int], Tensor]
"""A number a scored token, by (group key, response)."""

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of one pair, from the per-token log-ratios d of its chosen [T] and rejected [R] response."""


class CrossEntropy:
    """The mean cross-entropy over all scored tokens of a batch."""

    def weight(self, group: Group) -> float:
        return sum(len(group.scored(index)) for index in group.responses)

    def __call__(self, group: Group, logps: Logps) -> tuple[Tensor, Figures]:  # noqa: ARG002 - an Objective
        return torch.stack([losses.sft(values) for values in logps.values()]).sum(), {}


class PairObjective:
    """The mean of a pair loss over a batch's pairs, with the accuracy and margin of the implicit reward βΣd."""

    def __init__(self, reference: PerToken, beta: float, loss: PairLoss) -> None:
        self._reference, self._beta, self._loss = reference, beta, loss

    def weight(self, group: Group) -> float:
        return len(group.items)

    def __call__(self, group: Group, logps: Logps) -> tuple[Tensor, Figures]:
        ratios = {i: values - self._reference[group.key, i].to(values.device) for i, values in logps.items()}
        total = torch.stack([self._loss(ratios[chosen], ratios[rejected]) for chosen, rejected in group.items]).sum()
        sums = {index: float(values.detach().sum()) for index, values in ratios.items()}
        return total, reward_figures([(sums[chosen], sums[rejected]) for chosen, rejected in group.items], self._beta)


class TokenNpo:
    """ALLO's forgetting loss over wrong responses; the divisor is the batch's number of non-zero weights."""

    def __init__(self, reference: PerToken, weights: PerToken, beta: float) -> None:
        self._reference, self._weights, self._beta = reference, weights, beta

    def weight(self, group: Group) -> float:
        return sum(float((self._weights[group.key, index] != 0).sum()) for index in group.responses)

    def __call__(self, group: Group, logps: Logps) -> tuple[Tensor, Figures]:
        terms = []
        ratio = 0.0
        for index, values in logps.items():
            reference = self._reference[group.key, index].to(values.device)
            weights = self._weights[group.key, index].to(values.device)
            terms.append(losses.token_npo(values, reference, weights, self._beta))
            ratio += float(((values.detach() - reference) * (weights != 0)).sum())
        return torch.stack(terms).sum(), {"forgotten_log_ratio": (ratio, self.weight(group))}


class SimNpo:
    """SimNPO over wrong responses; the divisor is the batch's number of responses with a weighted token."""

    def __init__(self, weights: PerToken, beta: float, gamma: float) -> None:
        self._weights, self._beta, self._gamma = weights, beta, gamma

    def weight(self, group: Group) -> float:
        return sum(bool(self._weights[group.key, index].any()) for index in group.responses)

    def __call__(self, group: Group, logps: Logps) -> tuple[Tensor, Figures]:
        weights = {index: self._weights[group.key, index].to(values.device) for index, values in logps.items()}
        terms = [losses.simnpo(values, weights[index], self._beta, self._gamma) for index, values in logps.items()]
        forgotten = sum(float((values.detach() * (weights[i] != 0)).sum()) for i, values in logps.items())
        tokens = sum(int((found != 0).sum()) for found in weights.values())
        return torch.stack(terms).sum(), {"forgotten_logp": (forgotten, tokens)}


def reward_figures(ratios: list[tuple[float, float]], beta: float) -> Figures:
    """Accuracy and margin of the implicit reward βΣd over (chosen, rejected) log-ratios, as (sum, count)."""
    margins = [beta * (chosen - rejected) for chosen, rejected in ratios]
    right = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins)
    return {"reward_accuracy": (right, len(margins)), "reward_margin": (sum(margins), len(margins))}
