"""TRL's trainers as a stage runs them. This file imports TRL: whoever wants it imports it where TRL is asked for.

To transformers a run is one epoch, which begins behind the newest checkpoint: what is kept of it is ours alone, so that
it is read without unpickling anything, and by any number of processes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.state import AcceleratorState, PartialState
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from allo_engine.model.loading import device, dtype_of
from allo_engine.ranks import here
from allo_engine.report import Report, Stopped
from allo_engine.training.descent import everyones
from allo_engine.training.divergence import diverged
from allo_engine.training.figures import Totals
from allo_engine.training.optimizer import optimizer_of
from allo_engine.training.resuming import Cadence, Checkpoints, OptimizerState, State, newest_whole, step_of
from allo_engine.training.trl_plan import Item, Plan, parts
from allo_engine.training.zero_state import ZeroState, deepspeed

__all__ = ["DPOConfig", "ExampleTrainer", "PairTrainer", "SFTConfig", "among_ranks"]

_MEANS = {"rewards/accuracies": "reward_accuracy", "rewards/margins": "reward_margin"}
"""What TRL calls the figures of a pass that we report."""

_STRANGERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_", "PMI_", "OMPI_", "MV2_", "MPI_")
"""How variables begin by which accelerate would know its place among processes."""


@contextmanager
def among_ranks(zero: int) -> Iterator[None]:
    """Within, accelerate takes this process for the rank that it is, and not for what whoever started the worker left
    in its environment. In a stage of ZeRO accelerate is one with DeepSpeed, on a CPU, too, where it would not be.
    """
    ranks, before, count = here(), dict(os.environ), torch.cuda.device_count()
    for name in before:
        if name.startswith(_STRANGERS):
            del os.environ[name]
    if ranks.size > 1:
        own = torch.cuda.current_device() if count else ranks.rank
        os.environ |= {"RANK": str(ranks.rank), "LOCAL_RANK": str(own)}
        os.environ |= {"WORLD_SIZE": str(ranks.size), "LOCAL_WORLD_SIZE": str(ranks.size)}
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # else it takes all of the machine's
    try:
        if zero:
            deepspeed()
            AcceleratorState._reset_state(reset_partial_state=True)
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            PartialState(backend=None if count else "gloo")
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
        os.environ.clear()
        os.environ |= before


class _Parts:
    """This rank's part of each pass from a step on, as places among the plan's items; behind them stands nothing."""

    def __init__(self, plan: Plan, passes: int, start: int) -> None:
        self._plan, self._passes, self._start, self._ranks = plan, passes, start, here()

    def __len__(self) -> int:
        return (self._plan.steps - self._start) * self._passes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._plan.steps):
            for part in parts(self._plan.places(step), self._passes, self._ranks.size):
                yield list(part[self._ranks.rank]) or [len(self._plan.items)]


class _Steps(TrainerCallback):
    """Between steps: tells what a step gave, saves when it is time, and ends the run where a rank is asked to stop."""

    def __init__(self, trainer: StageTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.resume()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:  # the summary at the end has none
            self._trainer.told(logs)
            self.on_substep_end(args, state, control)

    def on_substep_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A stop does not wait for the rest of a batch: what it has so far is given up."""
        control.should_training_stop |= self._trainer.stops()


class StageTrainer(Trainer):
    """What both have: the plan's items in its order, our checkpoints, and no word to anyone but the report."""

    loss_is_scaled_for_ga = True  # by us
    kept: State
    """Parameters and moments, from the first step on."""

    def __init__(
        self, plan: Plan, passes: int, parameters: Mapping[str, nn.Parameter], report: Report, **settings: Any
    ) -> None:
        self._plan, self._passes, self._parameters, self._report = plan, passes, parameters, report
        self._ranks, self._cadence = here(), Cadence(plan.config.checkpoint_seconds)
        self._work = Path(settings["args"].output_dir)
        self._newest = newest_whole(self._work, report)
        self._start = self._saved = step_of(self._newest) if self._newest else 0
        self._done = plan.tokens_before(self._start)
        self._epoch, self._step = Totals(), Totals()
        settings["args"]._n_gpu = min(1, settings["args"].n_gpu)  # where several are seen, transformers would take all
        sample = Dataset.from_list([dict(plan.items[0].columns)])  # TRL looks at one: the loader below has them all
        super().__init__(train_dataset=sample, callbacks=[_Steps(self)], **settings)
        self.remove_callback(PrinterCallback)
        # TRL would gather a pass's figures, of which ranks have unlike many: we gather a step's.
        self.accelerator.gather = self.accelerator.gather_for_metrics = lambda figures: figures
        dtype = dtype_of(plan.config.precision)
        if self.is_deepspeed_enabled and dtype != torch.float32:  # DeepSpeed ends what is entered around it
            model = cast(nn.Module, self.model)
            model.forward = torch.autocast(device().type, dtype, cache_enabled=False)(model.forward)

    def run(self) -> dict[str, float]:
        """Train from the newest checkpoint on; the last epoch's means."""
        self.train()
        if self._at() < self._plan.steps:
            raise Stopped
        tokens = self._plan.config.n_epochs * self._plan.tokens_an_epoch
        return {"steps": self._plan.steps, "trained_tokens": tokens, **self._epoch.means()}

    def _at(self) -> int:
        """The step that comes next."""
        return self._start + int(self.state.global_step)

    # what transformers asks for

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """DDP's buckets are the gradients, not a copy of them."""
        found: dict[str, Any] = super()._build_accelerator_args(**kwargs)
        found["kwargs_handlers"][0].gradient_as_bucket_view = True
        return found

    def get_train_dataloader(self) -> DataLoader[Item]:
        """This rank's items alone, so that nobody else shares them out."""
        return DataLoader(
            [*self._plan.items, self._plan.nothing()],  # type: ignore[arg-type]  # a list is a dataset
            batch_sampler=_Parts(self._plan, self._passes, self._start),
            collate_fn=self._collated,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _collated(self, items: Sequence[Item]) -> dict[str, Any]:
        columns = self.data_collator([dict(item.columns) for item in items])
        return {**columns, "weight": sum(item.weight for item in items)}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self._adamw = optimizer_of(self._parameters.values(), self._plan.config, device().type)
            self.optimizer = self._adamw
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LambdaLR:
        first, plan = self._start, self._plan
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._adamw, lambda step: plan.rate(first + step) / plan.config.learning_rate
        )
        return self.lr_scheduler

    def _send_telemetry(self) -> None:
        """Nobody is told what is trained here."""

    # between steps

    def resume(self) -> None:
        """Take up what the newest checkpoint holds, and be ready to leave others."""
        if self.is_deepspeed_enabled:
            self.kept = ZeroState(self.model_wrapped.optimizer, self._adamw, self._parameters)
        else:
            self.kept = OptimizerState(self._parameters, self._adamw)
        self._checkpoints = Checkpoints(self._work, self.kept, self._report)
        if self._newest:
            step, sums = self._checkpoints.read(self._newest)
            self._epoch.sums.update(sums)
            self._report.message(f"Resumed behind step {step}.", data={"step": step})

    def told(self, logs: Mapping[str, float]) -> None:
        """Tell a step's figures, and save if it is time. Raises StageError "diverged" on all ranks."""
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs["grad_norm"]):
            raise diverged()  # the weights are, on all ranks: what was saved before is left as it is
        step, plan = self._at(), self._plan
        weight, found = plan.weight(step - 1), everyones(self._step)
        found.add("loss", logs["loss"] * weight, weight)
        if (step - 1) % plan.steps_an_epoch == 0:
            self._epoch = Totals()
        self._epoch.include(found)
        self._step = Totals()
        self._done += sum(item.tokens for item in plan.batch(step - 1))
        figures = {**found.means(), "gradient_norm": logs["grad_norm"], "learning_rate": logs["learning_rate"]}
        total = plan.config.n_epochs * plan.tokens_an_epoch
        self._report.progress(self._done, total, {"step": step, "steps": plan.steps, **figures})
        if self._ranks.any(self._cadence.due()):
            self._keep()

    def stops(self) -> bool:
        """Whether a rank is asked to stop: behind a checkpoint, if there is something new to keep."""
        asked = self._ranks.any(self._report.stop_requested)
        if asked and self._at() > self._saved:
            self._keep()
        return asked

    def _keep(self) -> None:
        """Behind the last step stands the result."""
        if self._at() < self._plan.steps:
            with self._cadence.saving():
                self._checkpoints.save(self._at(), self._epoch.sums)
            self._saved = self._at()
            self._report.checkpoint(self._saved)


class PairTrainer(StageTrainer, DPOTrainer):  # type: ignore[misc]
    """DPOTrainer on ids and reference log-probabilities that are there already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """A part's mean counts by its share of the batch. Gradients are averaged over the ranks: here they add up."""
        weight = inputs.pop("weight")
        mean: Tensor = super().compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        for theirs, ours in _MEANS.items():
            self._step.add(ours, self._metrics["train"][theirs][-1] * weight, weight)
        loss: Tensor = mean * (self._ranks.size * weight / self._plan.weight(self._at()))
        return loss


class ExampleTrainer(StageTrainer, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer on ids and labels that are there already: the mean over all predicted tokens of a batch."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        del inputs["weight"]
        batch = self._plan.weight(self._at())
        loss: Tensor = super().compute_loss(model, inputs, num_items_in_batch=batch)  # type: ignore[no-untyped-call]
        return loss
