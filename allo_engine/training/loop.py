"""The loop that every trained stage runs: batches, rows, loss, optimizer, checkpoints, report.

A batch is a pure function of (seed, epoch, step), the model has no dropout, and a checkpoint holds parameters and
optimizer, so a run that was killed and resumed is the run that was not. The loss of a batch is a sum over its rows
divided by the whole batch's weight, so the size of a row bounds memory and changes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from allo_engine.bases_trained import TrainingConfig
from allo_engine.model.freed import keep_freed_memory
from allo_engine.model.loading import recompute_activations
from allo_engine.model.logp_cache import Cut, LogpCache, known_or_scored, responses_apart
from allo_engine.model.logps import PerToken, everyones, score_rows
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group, batches
from allo_engine.model.sharing import Rows
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped
from allo_engine.training.averaging import Averaging
from allo_engine.training.descent import Descent, Parted, Whole
from allo_engine.training.divergence import WENT_BACK, Strikes, diverged
from allo_engine.training.feed import Feed, Packed, cut
from allo_engine.training.figures import Readings, Totals
from allo_engine.training.objectives import Objective
from allo_engine.training.optimizer import learning_rate
from allo_engine.training.resuming import Cadence, Checkpoints
from allo_engine.training.validation import Measure, Validation
from allo_engine.training.zero import Sharded

MOST_PLANNED = 10**8
"""Epochs times problems of a training: its batches are all known before its first step, and must fit the memory."""

FORWARD_SHARE = 1 / 3
"""A forward pass alone takes about a third of a training pass: the work counted for it in progress."""

Step = tuple[int, list[Group]]
"""A step's epoch and batch."""


class Trainer:
    """Trains `parameters` of a model on groups, checkpointing into `work`.

    `written` is called after each step, for parameters that stand beside the weights (see sparse.py). `zero` is the
    stage of ZeRO that shares the parameters out over the ranks; `way` is the model where that is shared out already,
    but for the parameters. `is_whole` says that every rank has all of it.
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
        zero: int = 0,
        way: Rows | None = None,
    ) -> None:
        self.model, self._config = model, config
        self._report, self._rows, self._written, self._ranks = report, rows, written, here()
        self._before, self.is_whole = 0, not (zero or way)
        if model.device.type == "cpu" and way is None:
            keep_freed_memory()
        if config.gradient_checkpointing is True:
            recompute_activations(model)
        self._descent: Descent = (
            Sharded(model, parameters, config, zero)
            if zero
            else Parted(way, parameters, config)
            if way
            else Whole(model, parameters, config)
        )
        self.weights = self._descent.weights
        self._work, self._checkpoints = work, Checkpoints(work, self._descent, report)

    def reference(self, groups: Sequence[Group], cache: LogpCache, held: Sequence[Group] = ()) -> PerToken:
        """The reference's log-probabilities: those of the model as it stands before the first step.

        So before the first step every log-ratio is 0: in float32 to 1e-5 nats, whoever computed the reference. In 16
        bits a log-probability's last bits depend on what else stands in its row, so there the reference is computed in
        the very rows of the first epoch, and the log-ratio is exactly 0; but of a group that is longer than a row, a
        response that stands in several of its rows has the reference of one of them. Those that are held out have it in
        the rows of their validation.
        """
        self._settle([*groups, *held])
        training = self._config.n_epochs * sum(group.tokens() for group in groups)

        def stop_if_asked(*_: int) -> None:
            if self._report.stop_requested:
                raise Stopped

        def tick(done: int, total: int) -> None:
            self._before = round(total * FORWARD_SHARE)
            self._report.progress(round(done * FORWARD_SHARE), self._before + training)
            stop_if_asked()

        def first_epoch(_: Sequence[Group], budget: int) -> list[list[Group]]:
            return [row for epoch, batch in self._plan(groups) if epoch == 0 for row in cut(batch, budget)]

        def scored(groups: Sequence[Group], tick: Callable[[int, int], None], how: Cut) -> PerToken:
            return known_or_scored(lambda: self.model, groups, cache, self._rows, tick, how, lambda _: self._descent)

        apart = scored(held, stop_if_asked, responses_apart)
        return {**apart, **scored(groups, tick, responses_apart if cache.is_shared else first_epoch)}

    def train(
        self, groups: Sequence[Group], objective: Objective, held: Sequence[Group] = (), measure: Measure | None = None
    ) -> dict[str, float]:
        """Train on groups for the configured epochs, or until those that are `held` out say that it is enough; the last
        epoch's mean figures.

        Raises Stopped after a checkpoint when the report asks to stop, and StageError "diverged" when the loss stays
        something other than a finite number.
        """
        self._settle([*groups, *held])
        plan = self._plan(groups)
        of = (held, objective, partial(self._scored, held), self._config, len(plan), self._descent, self._work)
        self._validation = Validation(*of, self._report, measure)
        self._averaging = Averaging(self._config, len(plan), self._descent, self._work, self._report)
        with closing(Feed([batch for _, batch in plan], objective.given, self.model.device)) as feed:
            step, totals = self._steps(plan, feed, objective)
        found = self._settled(step, totals, bool(held))
        tokens = sum(_tokens(batch) for _, batch in plan[:step])
        return {"steps": step, "trained_tokens": tokens, **totals.means(), **found}

    def validated(self) -> tuple[tuple[float, float], dict[str, float]]:
        """How the model stands behind its training, as it is now, by what is held out: of two, the better is the
        lesser. And the figures that say so."""
        figures = self._validation.figures()
        return self._validation.standing(figures), figures

    def _settled(self, step: int, totals: Totals, validates: bool) -> dict[str, float]:
        """Have the model as its result: what is told of that."""
        if validates and self._averaging.due(step):
            self._save(step, totals)  # the mean is no checkpoint to go on from
        averaged = self._averaging.settle(step)
        self._written()
        found = self._validation.settle(step, averaged)
        self._written()
        return found

    def _scored(self, held: Sequence[Group]) -> PerToken:
        """logπ of what is held out, as the model stands, on all ranks."""

        def tick(_: int) -> None:
            if self._report.stop_requested and self._rows.again:
                raise Stopped

        def attempt(budget: int) -> PerToken:
            return score_rows(self.model, responses_apart(held, budget), tick, self._descent)

        return everyones(self._rows.fit(attempt, held))

    def _settle(self, groups: Sequence[Group]) -> None:
        """Compute activations twice from here on, where memory asks for it."""
        if self._rows.settle(groups):
            recompute_activations(self.model)

    def _plan(self, groups: Sequence[Group]) -> list[Step]:
        config = self._config
        if config.n_epochs * len(groups) > MOST_PLANNED:
            raise StageError(
                "too_many_steps",
                f"{config.n_epochs} epochs of {len(groups)} problems are more than {MOST_PLANNED:,}: lower n_epochs.",
            )
        return [
            (epoch, [groups[place] for place in batch])
            for epoch in range(config.n_epochs)
            for batch in batches(groups, config.batch_size, config.seed, epoch)
        ]

    def _steps(self, plan: Sequence[Step], feed: Feed, objective: Objective) -> tuple[int, Totals]:
        """Every step from where an earlier run was cut; how many were taken, and the last epoch's figures."""
        work = list(accumulate((_tokens(batch) for _, batch in plan), initial=self._before))
        strikes, cadence = Strikes(), Cadence(self._config.checkpoint_seconds)
        step, totals = self._resumed()
        while True:
            if self._validation.due(step) and not strikes.in_a_row:
                figures = self._validated(step, totals)
                self._report.progress(work[step], work[-1], {"step": step, "steps": len(plan), **figures})
            if self._averaging.due(step) and not strikes.in_a_row:
                self._averaging.take(step)
            if step == len(plan) or self._validation.over:
                break
            epoch, batch = plan[step]
            if step and epoch != plan[step - 1][0]:
                totals = Totals()
            try:
                taken = self._step(
                    batch, partial(feed.rows, step), objective, learning_rate(self._config, step, len(plan)), totals
                )
            except Stopped:
                if step and not strikes.in_a_row:
                    self._leave(step, totals)
                raise
            step += 1
            if taken is None:
                self._report.message(f"Step {step} gave no finite loss and was passed over.", "warn", {"step": step})
                if strikes.hit():
                    step, totals = self._went_back()
                continue
            strikes.clear()
            self._report.progress(work[step], work[-1], {"step": step, "steps": len(plan), **taken})
            stop, due = self._asked(cadence)
            if stop or due:
                with cadence.saving():
                    self._save(step, totals)
            if stop and step < len(plan):
                raise Stopped
        if strikes.in_a_row == len(plan):
            raise diverged()
        return step, totals

    def _validated(self, step: int, totals: Totals) -> dict[str, float]:
        """The validation behind a step. What is best so far stands in a checkpoint for resuming, too, so that no run
        goes on from before it; before the first step there is nothing to go on from."""
        try:
            figures, better = self._validation.take(step)
        except Stopped:
            if step:
                self._leave(step, totals)
            raise
        if better and step:
            self._save(step, totals)
        return figures

    def _save(self, step: int, totals: Totals) -> None:
        self._checkpoints.save(step, {**totals.sums, **self._validation.sums()})
        self._saved = step
        self._report.checkpoint(step)

    def _leave(self, step: int, totals: Totals) -> None:
        """Have a checkpoint behind this step, which may be there: nobody is to wait for the device while it is written
        again."""
        if step != self._saved:
            self._save(step, totals)

    def _asked(self, cadence: Cadence) -> tuple[bool, bool]:
        """Whether any rank is to stop, and whether any is to save."""
        said = self._ranks.gathered((self._report.stop_requested, cadence.due()))
        return any(stop for stop, _ in said), any(due for _, due in said)

    def _resumed(self, why: str = "") -> tuple[int, Totals]:
        """Where an earlier run was cut: the next step, and the figures so far."""
        step, sums = self._checkpoints.load() or (0, {})
        self._saved = step
        totals = Totals()
        totals.sums.update(self._validation.resumed(sums))
        if step:
            self._written()
            self._report.message(f"Resumed behind step {step}.{why}", "warn" if why else "info", {"step": step})
        return step, totals

    def _went_back(self) -> tuple[int, Totals]:
        """The last checkpoint's step and figures; without a checkpoint there is nowhere to go back to."""
        step, totals = self._resumed(WENT_BACK)
        if not step:
            raise diverged()
        return step, totals

    def _step(
        self,
        batch: Sequence[Group],
        rows: Callable[[int], Iterator[Packed]],
        objective: Objective,
        rate: float,
        totals: Totals,
    ) -> dict[str, float] | None:
        """One step of the optimizer, its figures; None, and nothing done, where loss or gradient is not finite."""
        divisor = sum(objective.weight(group) for group in batch)
        if not divisor:
            return {}
        readings = self._rows.fit(
            lambda budget: self._gradient(rows(budget), objective, divisor), batch, undo=self._descent.forget
        )
        taken = self._descent.step(rate, readings)
        if taken is None:
            return None
        found, norm = taken
        self._written()
        totals.include(found)
        return {**found.means(), "gradient_norm": norm, "learning_rate": rate}

    def _gradient(self, rows: Iterator[Packed], objective: Objective, divisor: float) -> Readings:
        """The batch's gradient, accumulated row by row, and its figures."""
        readings = Readings()
        for packed in self._descent.even(rows):
            # What this batch has so far is given up, where it can be, on all ranks: a stop must not wait for the rest.
            if self._report.stop_requested and self._rows.again:
                raise Stopped
            logps_R = self._descent.logps(packed.row)
            losses = []
            for group, logps, given in packed.by_group(logps_R):
                loss, figures = objective(group, logps, given)
                readings.add({"loss": (loss, objective.weight(group)), **figures})
                losses.append(loss)
            self._descent.backward(torch.stack(losses).sum() / divisor)
        return readings


def _tokens(batch: Iterable[Group]) -> int:
    return sum(group.tokens() for group in batch)
