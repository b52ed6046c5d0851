"""TRL's trainers as a stage runs them. This file imports TRL: whoever wants it imports it where TRL is asked for.

A checkpoint is transformers' own: weights in safetensors, and optimizer, rates and random states as torch saves them,
which are unpickled as tensors alone (weights_only) and from no folder but one that this stage wrote and sealed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from allo_engine.report import Report, Stopped
from allo_engine.training.by_trl import Plan
from allo_engine.training.divergence import diverged
from allo_engine.training.figures import Totals
from allo_engine.training.resuming import Cadence
from allo_engine.training.sealed import newest_sealed, seal

__all__ = ["DPOConfig", "ExampleTrainer", "PairTrainer", "SFTConfig"]

_MEANS = {"loss": "loss", "rewards/accuracies": "reward_accuracy", "rewards/margins": "reward_margin"}
_FIGURES = {**_MEANS, "grad_norm": "gradient_norm", "learning_rate": "learning_rate"}
"""What TRL calls what we report; the means are those of an epoch, too."""


class _Order(Sampler[int]):
    """The plan's order of the epoch that a step is in."""

    def __init__(self, plan: Plan, step: Callable[[], int]) -> None:
        self._plan, self._step = plan, step

    def __len__(self) -> int:
        return len(self._plan.items)

    def __iter__(self) -> Iterator[int]:
        return iter(self._plan.order(self._step() // self._plan.steps_an_epoch))


class _Telling(TrainerCallback):
    """Reports each step, and says when to save and when to stop."""

    def __init__(self, plan: Plan, report: Report, cadence: Cadence) -> None:
        self._plan, self._report, self._cadence = plan, report, cadence
        self._done, self._saved = 0, 0
        self.totals = Totals()

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved, self._done = state.global_step, self._plan.tokens_before(state.global_step)
        if state.global_step:
            self.totals.sums.update(state.log_history[-1])  # type: ignore[arg-type]
            self._report.message(f"Resumed behind step {state.global_step}.", data={"step": state.global_step})

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        """A step's figures. transformers' history of them becomes the epoch's sums, which a checkpoint keeps."""
        if not logs or "loss" not in logs:  # the summary at the end has none
            return
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise diverged()  # the weights are: what was saved before is left as it is
        batch = self._plan.batch(state.global_step - 1)
        if (state.global_step - 1) % self._plan.steps_an_epoch == 0:
            self.totals = Totals()
        weight = sum(item.weight for item in batch)
        for theirs, ours in _MEANS.items():
            if theirs in logs:
                self.totals.add(ours, logs[theirs] * weight, weight)
        state.log_history[:] = [dict(self.totals.sums)]  # type: ignore[arg-type]
        self._done += sum(item.tokens for item in batch)
        figures = {ours: logs[theirs] for theirs, ours in _FIGURES.items() if theirs in logs}
        total = self._plan.config.n_epochs * self._plan.tokens_an_epoch
        self._report.progress(self._done, total, {"step": state.global_step, "steps": self._plan.steps, **figures})
        self.on_substep_end(args, state, control)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_save = self._cadence.due()
        self.on_substep_end(args, state, control)

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A stop does not wait for the rest of a batch: what it has so far is given up."""
        if self._report.stop_requested:
            control.should_training_stop, control.should_save = True, state.global_step > self._saved

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._saved = state.global_step


class _StageTrainer(Trainer):
    """What both have: the plan's items in its order, sealed checkpoints, and no word to anyone but the report."""

    def __init__(self, plan: Plan, report: Report, **settings: Any) -> None:
        self._plan, self._report, self._cadence = plan, report, Cadence(plan.config.checkpoint_seconds)
        self._folder = Path(settings["args"].output_dir)
        settings["args"]._n_gpu = min(1, settings["args"].n_gpu)  # where several are seen, transformers would take all
        self._telling = _Telling(plan, report, self._cadence)
        dataset = Dataset.from_list([dict(item.columns) for item in plan.items])
        super().__init__(train_dataset=dataset, callbacks=[self._telling], **settings)
        self.remove_callback(PrinterCallback)

    def run(self) -> dict[str, float]:
        """Train from the newest checkpoint on; the last epoch's means."""
        newest = newest_sealed(self._folder, self._report)
        self.train(resume_from_checkpoint=None if newest is None else str(newest))
        if self.state.global_step < self._plan.steps:
            raise Stopped
        tokens = self._plan.config.n_epochs * self._plan.tokens_an_epoch
        return {"steps": self._plan.steps, "trained_tokens": tokens, **self._telling.totals.means()}

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return _Order(self._plan, lambda: int(self.state.global_step))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self._cadence.saving():
            super()._save_checkpoint(model, trial)
            seal(self._folder / f"checkpoint-{self.state.global_step}")

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """A checkpoint in a work folder needs none."""

    def _send_telemetry(self) -> None:
        """Nobody is told what is trained here."""


class PairTrainer(_StageTrainer, DPOTrainer):
    """DPOTrainer on ids and reference log-probabilities that are there already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """A micro-batch's mean counts by its share of the batch; the loop divides by the number of micro-batches."""
        mean: Tensor = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)  # type: ignore[no-untyped-call]
        share = len(inputs["input_ids"]) / 2 / len(self._plan.batch(self.state.global_step))
        return mean * share * self.current_gradient_accumulation_steps


class ExampleTrainer(_StageTrainer, SFTTrainer):
    """SFTTrainer on ids and labels that are there already: the mean over all predicted tokens of a batch."""
