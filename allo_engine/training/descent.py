"""From rows' losses to a step of the optimizer: what a training does otherwise where its weights are shared out.

`Whole` is every process that holds all that it trains, alone or among others, and `Parted` one that holds all of that,
but a part of what is frozen; zero.py has the one that holds a part of what it trains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allo_engine.bases_trained import TrainingConfig
from allo_engine.model.logps import computing, token_logps
from allo_engine.model.sequences import Row
from allo_engine.model.sharing import Rows, evenly
from allo_engine.ranks import here
from allo_engine.training.figures import Readings, Totals
from allo_engine.training.optimizer import optimizer_of
from allo_engine.training.resuming import OptimizerState, State

Item = TypeVar("Item")


class Descent(State, Protocol):
    """Everything but `logps` and `backward` is done by all ranks together, and these as often as `even` gives rows."""

    def even(self, rows: Iterator[Item]) -> Iterator[Item]:
        """This rank's rows, while the other ranks go through theirs."""

    def logps(self, row: Row) -> Tensor:
        """logπ of every predicted token of a row: float32 [R], in nats."""

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradient to that of the step. The step's is the sum over all rows of all ranks."""

    def step(self, rate: float, readings: Readings) -> tuple[Totals, float] | None:
        """Step along the gradient, and forget it: all ranks' figures, and the gradient's norm before it was clipped.

        None, and nothing moves, where the loss or the norm is not finite.
        """

    def forget(self) -> None:
        """Let go the gradient that was gathered so far."""


class Whole(OptimizerState):
    """All trained `parameters` on every rank; what is exchanged are gradients."""

    def __init__(self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> None:
        super().__init__(parameters, optimizer_of(parameters.values(), config, model.device.type))
        self._model, self._config, self._ranks = model, config, here()
        for parameter in parameters.values():  # made once, apart from a row's activations, and kept
            parameter.grad = torch.zeros_like(parameter)

    def even(self, rows: Iterator[Item]) -> Iterator[Item]:
        return rows

    def logps(self, row: Row) -> Tensor:
        with computing(self._model, self._config.precision):
            return token_logps(self._model, row)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, rate: float, readings: Readings) -> tuple[Totals, float] | None:
        """The device is waited for once, when all rows have been through and the gradient's norm is due."""
        self._ranks.total([cast(Tensor, value.grad) for value in self.parameters.values()])
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self._config.max_grad_norm)
        readings.add({"gradient_norm": (norm, 1)})
        own = readings.read()
        own_norm, _ = own.sums.pop("gradient_norm")  # of a step, not of an epoch; and of all ranks already
        found = everyones(own)
        taken = finite(found, own_norm)
        if taken:
            for settings in self.optimizer.param_groups:
                settings["lr"] = rate
            self.optimizer.step()
        self.forget()
        return (found, own_norm) if taken else None

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)


class Parted(Whole):
    """The same, of a model that is shared out as `way` over all ranks, but for the trained parameters."""

    def __init__(self, way: Rows, parameters: Mapping[str, nn.Parameter], config: TrainingConfig) -> None:
        super().__init__(way.model, parameters, config)
        self._way = way

    def even(self, rows: Iterator[Item]) -> Iterator[Item]:
        return evenly(rows, self.logps, self.backward)

    def logps(self, row: Row) -> Tensor:
        with computing(self._model, self._config.precision):
            logps_R: Tensor = self._way(row)
        if not torch.is_grad_enabled():
            self._way.let_go()
        return logps_R


def everyones(own: Totals) -> Totals:
    """The figures of all ranks together."""
    return Totals.of(here().gathered(dict(own.sums)))


def finite(found: Totals, norm: float) -> bool:
    """Whether a step may be taken."""
    return math.isfinite(found.means()["loss"]) and math.isfinite(norm)
