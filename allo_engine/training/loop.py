"""The loop that every trained stage runs: batches, rows, loss, optimizer, checkpoints, report.

A batch is a pure function of (seed, epoch, step), the model has no dropout, and a checkpoint holds parameters and
optimizer, so a run that was killed and resumed is the run that was not. The loss of a batch is a sum over its rows
divided by the whole batch's weight, so the size of a row bounds memory and changes nothing else.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allo_engine.checkpoints.delta import Values
from allo_engine.config import TrainingConfig
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.loading import load_model, recompute_activations
from allo_engine.model.logp_cache import LogpCache, known_or_scored
from allo_engine.model.logps import PerToken, computing, token_logps
from allo_engine.model.memory import keep_freed_memory
from allo_engine.model.rows import RowBudget, fitting_tokens
from allo_engine.model.sequences import Group, batches, build_row, rows_of
from allo_engine.report import Report, StageError, Stopped
from allo_engine.training.resuming import Checkpoints

FORWARD_SHARE = 1 / 3
"""A forward pass alone takes about a third of a training pass: the work counted for it in progress."""

STRIKES = 3
"""So many steps in a row whose loss is not finite send a training back to its last checkpoint; once."""

Figures = dict[str, tuple[float, float]]
"""Figures to report, each as (sum, count)."""

Logps = Mapping[int, Tensor]
"""logπ of each response's scored tokens, by the response's number in its group."""


class Objective(Protocol):
    """What a stage minimises, a group at a time."""

    def weight(self, group: Group) -> float:
        """What the group adds to the batch's divisor: its tokens, pairs or non-zero weights."""

    def __call__(self, group: Group, logps: Logps) -> tuple[Tensor, Figures]:
        """The group's loss, summed, and figures to report, each as (sum, count)."""


@dataclass
class Totals:
    """Figures summed over groups: each a (sum, count)."""

    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, figures: Mapping[str, tuple[float, float]]) -> None:
        for name, (total, count) in figures.items():
            self.sums[name][0] += total
            self.sums[name][1] += count

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items() if count}


class Trainer:
    """Trains `parameters` of a model on groups, checkpointing into `work`.

    `written` is called after each step, for parameters that stand beside the weights (see sparse.py).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        config: TrainingConfig,
        report: Report,
        work: Path,
        rows: RowBudget,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._parameters, self._config = model, dict(parameters), config
        self._report, self._rows, self._written = report, rows, written
        self._before = 0
        if model.device.type == "cpu":
            keep_freed_memory()
        if config.gradient_checkpointing:
            recompute_activations(model)
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=model.device.type in ("cpu", "cuda"),
        )
        for parameter in self._parameters.values():  # made once, apart from a row's activations, and kept
            parameter.grad = torch.zeros_like(parameter)
        self._checkpoints = Checkpoints(work, self._parameters, self._optimizer, report)

    def reference(self, groups: Sequence[Group], cache: LogpCache) -> PerToken:
        """The reference's log-probabilities: those of the model as it stands before the first step."""
        training = self._config.n_epochs * sum(group.tokens() for group in groups)

        def tick(done: int, total: int) -> None:
            self._before = round(total * FORWARD_SHARE)
            self._report.progress(round(done * FORWARD_SHARE), self._before + training)
            if self._report.stop_requested:
                raise Stopped

        return known_or_scored(lambda: self._model, groups, cache, self._rows, tick)

    def train(self, groups: Sequence[Group], objective: Objective) -> dict[str, float]:
        """Train on groups for the configured epochs; the last epoch's mean figures.

        Raises Stopped after a checkpoint when the report asks to stop, and StageError "diverged" when the loss stays
        something other than a finite number.
        """
        plan = self._plan(groups)
        tokens = (sum(groups[place].tokens() for place in batch) for _, batch in plan)
        work = list(accumulate(tokens, initial=self._before))
        step, totals = self._resumed()
        strikes, restored, trained = 0, False, step
        saved, cost = time.monotonic(), 0.0
        while step < len(plan):
            epoch, batch = plan[step]
            if step and epoch != plan[step - 1][0]:
                totals = Totals()
            rate = self._rate(step, len(plan))
            chosen = [groups[place] for place in batch]
            try:
                figures = self._step(chosen, objective, rate, totals)
            except Stopped:
                if trained and not strikes:
                    self._checkpoints.save(step, totals.sums)
                raise
            step += 1
            if figures is None:
                strikes += 1
                self._report.message(f"Step {step} gave no finite loss and was passed over.", "warn", {"step": step})
                if strikes == STRIKES:
                    step, totals = self._restored(restored)
                    strikes, restored = 0, True
                continue
            strikes, trained = 0, step
            self._report.progress(work[step], work[-1], {"step": step, "steps": len(plan), **figures})
            if time.monotonic() - saved > max(self._config.checkpoint_seconds, 20 * cost):
                began = time.monotonic()
                self._checkpoints.save(step, totals.sums)
                saved = time.monotonic()
                cost = saved - began
        if not trained:
            raise StageError("diverged", _DIVERGED)
        return {"steps": len(plan), "trained_tokens": work[-1] - self._before, **totals.means()}

    def _plan(self, groups: Sequence[Group]) -> list[tuple[int, list[int]]]:
        """Every step's epoch and batch."""
        config = self._config
        epochs = range(config.n_epochs)
        return [(epoch, batch) for epoch in epochs for batch in batches(groups, config.batch_size, config.seed, epoch)]

    def _resumed(self) -> tuple[int, Totals]:
        """Where an earlier run was cut: the next step, and the figures so far."""
        found = self._checkpoints.load()
        if found is None:
            return 0, Totals()
        step, sums = found
        self._written()
        self._report.message(f"Resumed behind step {step}.", data={"step": step})
        totals = Totals()
        totals.sums.update(sums)
        return step, totals

    def _restored(self, before: bool) -> tuple[int, Totals]:
        """Back to the last checkpoint, as what went wrong may have been the machine; never twice."""
        step, totals = (0, Totals()) if before else self._resumed()
        if not step:
            raise StageError("diverged", _DIVERGED)
        return step, totals

    def _step(
        self, groups: Sequence[Group], objective: Objective, rate: float, totals: Totals
    ) -> dict[str, float] | None:
        """One step of the optimizer, its figures; None, and nothing done, where loss or gradient is not finite."""
        divisor = sum(objective.weight(group) for group in groups)
        if not divisor:
            return {}
        loss, batch = self._rows.fit(
            lambda budget: self._gradient(groups, objective, divisor, budget), groups, undo=self._forget_gradient
        )
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            self._forget_gradient()
            return None
        for settings in self._optimizer.param_groups:
            settings["lr"] = rate
        self._optimizer.step()
        self._forget_gradient()
        self._written()
        batch.add({"loss": (loss * divisor, divisor)})
        totals.add({name: (total, count) for name, (total, count) in batch.sums.items()})
        return {**batch.means(), "gradient_norm": norm, "learning_rate": rate}

    def _gradient(
        self, groups: Sequence[Group], objective: Objective, divisor: float, budget: int
    ) -> tuple[float, Totals]:
        """The batch's loss, its gradient accumulated row by row."""
        loss, batch = 0.0, Totals()
        for row_groups in rows_of(groups, budget):
            if self._report.stop_requested:  # what this batch has so far is given up: a stop must not wait for the rest
                self._forget_gradient()
                raise Stopped
            row = build_row(row_groups, self._model.device)
            with computing(self._model, self._config.precision):
                parts = row.split(token_logps(self._model, row))
            row_loss = torch.zeros((), device=self._model.device)
            for place, group in enumerate(row_groups):
                group_loss, figures = objective(group, {index: parts[place, index] for index in group.responses})
                row_loss = row_loss + group_loss
                batch.add(figures)
            (row_loss / divisor).backward()
            loss += row_loss.item() / divisor
        return loss, batch

    def _forget_gradient(self) -> None:
        self._optimizer.zero_grad(set_to_none=False)

    def _rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: a linear rise over the warm-up, then the schedule down to 0."""
        config = self._config
        rise = math.ceil(config.warmup_ratio * steps)
        if step < rise:
            return config.learning_rate * (step + 1) / (rise + 1)
        done = (step - rise) / max(1, steps - rise)
        shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
        return config.learning_rate * shape[config.schedule]


def dense_trainer(folder: Path, config: TrainingConfig, report: Report, work: Path) -> tuple[PreTrainedModel, Trainer]:
    """A folder's model with all its weights as parameters, in float32 whatever it computes in."""
    rows = RowBudget(fitting_tokens(config, folder, "dense"), work, report)
    model = load_model(folder)
    return model, Trainer(model, dict(model.named_parameters()), config, report, work, rows)


def sparse_trainer(
    model: PreTrainedModel, folder: Path, start: Values, config: TrainingConfig, report: Report, work: Path
) -> tuple[SparseModel, Trainer]:
    """A folder's model with the entries `start` as parameters, which are float32 whatever the model is."""
    ratio = sum(len(places) for places, _ in start.values()) / model.num_parameters()
    rows = RowBudget(fitting_tokens(config, folder, "sparse", ratio), work, report)
    sparse = SparseModel(model, start)
    return sparse, Trainer(model, sparse.values, config, report, work, rows, written=sparse.write_back)


_DIVERGED = "The loss is no longer a finite number: lower learning_rate or max_grad_norm."
