"""The loop that every trained stage runs: batches, rows, loss, optimizer, checkpoints, report.

A batch is a pure function of (seed, epoch, step), the model has no dropout, and a checkpoint holds parameters and
optimizer, so a run that was killed and resumed is the run that was not. The loss of a batch is a sum over its rows
divided by the whole batch's weight, so the size of a row bounds memory and changes nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from allo_engine.config import TrainingConfig
from allo_engine.models import token_logps
from allo_engine.report import Report, StageError, Stopped
from allo_engine.sequences import Group, batches, build_row, rows_of

FORWARD_SHARE = 1 / 3
"""A forward pass alone takes about a third of a training pass: the work counted for it in progress."""

SMALLEST_ROW = 32
"""Rows are not made shorter than this: what still does not fit then is a single sequence."""

Result = TypeVar("Result")

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


@torch.no_grad()
def score(
    model: PreTrainedModel, groups: Sequence[Group], budget: int, tick: Callable[[int], None]
) -> dict[tuple[int, int], Tensor]:
    """logπ of every response's scored tokens, float32 on the CPU, by (group key, response).

    `tick` is told of each row's tokens when it is done.
    """
    found: dict[tuple[int, int], Tensor] = {}
    for row_groups in rows_of(groups, budget):
        row = build_row(row_groups, model.device)
        for (place, index), logps in row.split(token_logps(model, row).cpu()).items():
            found[row_groups[place].key, index] = logps
        tick(row.ids.numel())
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the machine had too little memory; on a CPU torch has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


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
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._parameters, self._config = model, dict(parameters), config
        self._report, self._work, self._written = report, work, written
        self._budget = config.micro_batch_tokens
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=model.device.type in ("cpu", "cuda"),
        )

    def reference(self, groups: Sequence[Group]) -> dict[tuple[int, int], Tensor]:
        """The reference's log-probabilities: those of the model as it stands before the first step.

        Kept in the work folder, so that a resumed run need not compute them again.
        """
        path = self._work / "reference.safetensors"
        if path.exists():
            names = {f"{group.key}/{index}": (group.key, index) for group in groups for index in group.responses}
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(name) for name, key in names.items()}
        done = 0
        total = self._total(groups, reference=True)

        def tick(tokens: int) -> None:
            nonlocal done
            done += round(tokens * FORWARD_SHARE)
            self._report.progress(done, total)
            if self._report.stop_requested:
                raise Stopped

        logps = self._in_memory(lambda budget: score(self._model, groups, budget, tick))
        self._work.mkdir(parents=True, exist_ok=True)
        save_file({f"{key}/{index}": values for (key, index), values in logps.items()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        return logps

    def train(self, groups: Sequence[Group], objective: Objective, reference: bool = False) -> dict[str, float]:
        """Train on groups for the configured epochs; the last epoch's mean figures.

        `reference` says that `reference()` ran before, for the count of progress. Raises Stopped after a checkpoint
        when the report asks to stop, and StageError "diverged" when loss or gradient is not finite.
        """
        plan = [
            (epoch, batch)
            for epoch in range(self._config.n_epochs)
            for batch in batches(groups, self._config.batch_size, self._config.seed, epoch)
        ]
        work, total = self._done_before(groups, reference), self._total(groups, reference)
        first, totals = self._resume()
        saved, cost = time.monotonic(), 0.0
        for step, (epoch, batch) in enumerate(plan):
            chosen = [groups[place] for place in batch]
            work += sum(group.tokens() for group in chosen)
            if step < first:
                continue
            if step and epoch != plan[step - 1][0]:
                totals = Totals()
            try:
                rate = self._rate(step, len(plan))
                figures = self._in_memory(lambda budget: self._step(chosen, objective, rate, totals, budget))  # noqa: B023
            except Stopped:
                if step > first:
                    self._checkpoint(step, totals)
                raise
            self._report.progress(min(work, total), total, {"step": step + 1, "steps": len(plan), **figures})
            if time.monotonic() - saved > max(self._config.checkpoint_seconds, 20 * cost):
                began = time.monotonic()
                self._checkpoint(step + 1, totals)
                saved = time.monotonic()
                cost = saved - began
        tokens = self._config.n_epochs * sum(group.tokens() for group in groups)
        return {"steps": len(plan), "trained_tokens": tokens, **totals.means()}

    def _in_memory(self, work: Callable[[int], Result]) -> Result:
        """Do work with rows of at most so many tokens, fewer from now on where the device's memory was too small."""
        while True:
            try:
                return work(self._budget)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self._budget <= SMALLEST_ROW:
                    raise
            self._optimizer.zero_grad(set_to_none=True)
            self._budget //= 2
            self._report.message(
                f"The device's memory was full: going on with micro_batch_tokens = {self._budget}.",
                "warn",
                {"micro_batch_tokens": self._budget},
            )

    def _step(
        self, groups: Sequence[Group], objective: Objective, rate: float, totals: Totals, budget: int
    ) -> dict[str, float]:
        divisor = sum(objective.weight(group) for group in groups)
        if not divisor:
            return {}
        batch = Totals()
        loss = 0.0
        for row_groups in rows_of(groups, budget):
            if self._report.stop_requested:  # what this batch has so far is given up: a stop must not wait for the rest
                self._optimizer.zero_grad(set_to_none=True)
                raise Stopped
            row = build_row(row_groups, self._model.device)
            parts = row.split(token_logps(self._model, row))
            row_loss = torch.zeros((), device=self._model.device)
            for place, group in enumerate(row_groups):
                group_loss, figures = objective(group, {index: parts[place, index] for index in group.responses})
                row_loss = row_loss + group_loss
                batch.add(figures)
            (row_loss / divisor).backward()
            loss += row_loss.item() / divisor
        norm = float(nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise StageError("diverged", "The loss is no longer a finite number: lower learning_rate or max_grad_norm.")
        for settings in self._optimizer.param_groups:
            settings["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._written()
        batch.add({"loss": (loss * divisor, divisor)})
        for name, (total, count) in batch.sums.items():
            totals.add({name: (total, count)})
        return {**batch.means(), "gradient_norm": norm, "learning_rate": rate}

    def _rate(self, step: int, steps: int) -> float:
        """The learning rate of a step: a linear rise over the warm-up, then the schedule down to 0."""
        config = self._config
        rise = math.ceil(config.warmup_ratio * steps)
        if step < rise:
            return config.learning_rate * (step + 1) / (rise + 1)
        done = (step - rise) / max(1, steps - rise)
        shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
        return config.learning_rate * shape[config.schedule]

    def _total(self, groups: Sequence[Group], reference: bool) -> int:
        tokens = sum(group.tokens() for group in groups)
        return self._done_before(groups, reference) + tokens * self._config.n_epochs

    @staticmethod
    def _done_before(groups: Sequence[Group], reference: bool) -> int:
        return round(sum(group.tokens() for group in groups) * FORWARD_SHARE) if reference else 0

    def _checkpoint(self, step: int, totals: Totals) -> None:
        """Write aside, sync, rename; then forget the one before. The name holds the content's sha256."""
        tensors = {f"values/{name}": value.detach() for name, value in self._parameters.items()}
        for name, value in self._parameters.items():
            state = self._optimizer.state[value]
            tensors |= {f"{key}/{name}": state[key].detach() for key in ("exp_avg", "exp_avg_sq", "step")}
        self._work.mkdir(parents=True, exist_ok=True)
        aside = self._work / "checkpoint.tmp"
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            aside,
            metadata={"step": str(step), "totals": json.dumps(totals.sums)},
        )
        with aside.open("rb+") as stream:
            os.fsync(stream.fileno())
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        older = list(self._work.glob("step-*.safetensors"))
        aside.replace(self._work / f"step-{step:08d}-{sha256}.safetensors")
        for path in older:
            path.unlink()

    def _resume(self) -> tuple[int, Totals]:
        """Load the newest checkpoint whose content is what its name says: the next step, and the figures so far."""
        for path in sorted(self._work.glob("step-*.safetensors"), reverse=True):
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != path.stem.split("-")[2]:
                    self._report.message(f"Checkpoint {path.name} is damaged and was passed over.", level="warn")
                    continue
            return self._load(path)
        return 0, Totals()

    @torch.no_grad()
    def _load(self, path: Path) -> tuple[int, Totals]:
        with safe_open(path, framework="pt") as file:
            for name, value in self._parameters.items():
                value.copy_(file.get_tensor(f"values/{name}"))
                state = self._optimizer.state[value]
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = file.get_tensor(f"{key}/{name}").to(value.device)
                state["step"] = file.get_tensor(f"step/{name}")
            metadata = file.metadata()
        self._written()
        totals = Totals()
        totals.sums.update(json.loads(metadata["totals"]))
        self._report.message(f"Resumed behind step {metadata['step']}.", data={"step": int(metadata["step"])})
        return int(metadata["step"]), totals
