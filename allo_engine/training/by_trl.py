"""TRL as a baseline's trainer: its DPOTrainer or SFTTrainer runs in the stage's processes, in transformers' own loop.

TRL's are the padded batches, the passes and the loss; accelerate brings the processes together, by DeepSpeed where they
share out what they train (zero.py) and by torch's DDP where they do not. The engine's are, so that nothing else
differs, the token ids and their order, AdamW and its rates, the reference's log-probabilities (scored once, so that no
second model is held), what is reported, and the checkpoints.

A batch has `batch_size` items whatever problems they are of, and a step's gradient is the mean over its batch. It is
cut into parts, one a pass and process, that differ by one item at most: each counts by its items, and one that is
empty for nothing. So no item is taken twice or left out, whatever the number of processes. TRL's losses that look at a
batch as a whole (aot, aot_unpaired, sft) look at a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from allo_engine.bases_trained import BaselineConfig
from allo_engine.checkpoints.names import names_of, text_weights
from allo_engine.model.freed import keep_freed_memory
from allo_engine.model.loading import device, dtype_of, empty_model, load_model, packs, plain_model, save_weights
from allo_engine.model.logp_cache import LogpCache, known_or_scored
from allo_engine.model.logps import PerToken
from allo_engine.model.rows import RowBudget, fitting_rows, give_back_freed_memory
from allo_engine.model.sequences import Group
from allo_engine.model.sharing import Reading, in_parts
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped
from allo_engine.training.choice import stage_of
from allo_engine.training.loop import FORWARD_SHARE
from allo_engine.training.trl_plan import Item, Plan, bare, example, pair, passes_of
from allo_engine.training.zero import shared_out, zero_settings


@dataclass(frozen=True)
class Stage:
    """A stage that TRL trains: from the model in `start`, into a checkpoint in `out`."""

    config: BaselineConfig
    start: Path
    groups: Sequence[Group]
    report: Report
    work: Path
    out: Path

    def pairs(self, cache: LogpCache, loss: Mapping[str, Any]) -> dict[str, float]:
        """By DPOTrainer, whose settings name the `loss`. Raises Stopped behind a checkpoint, and StageError as the
        engine's own loop does."""
        zero = stage_of(self.config, self.start, self.report)
        with _library(zero) as library:
            rows = self._rows(zero)
            reference = self._reference(cache, rows, zero)
            items = [pair(group, item, reference) for group in self.groups for item in group.items]
            settings = partial(library.DPOConfig, **loss, precompute_ref_log_probs=True)
            return self._trained(library.PairTrainer, settings, items, rows, zero)

    def examples(self) -> dict[str, float]:
        """By SFTTrainer. Raises what `pairs` does."""
        zero = stage_of(self.config, self.start, self.report)
        with _library(zero) as library:
            items = [example(group, item) for group in self.groups for item in group.items]
            return self._trained(library.ExampleTrainer, library.SFTConfig, items, self._rows(zero), zero)

    def _rows(self, zero: int) -> RowBudget:
        if device().type == "cpu":
            keep_freed_memory()
        tokens, choice = fitting_rows(self.config, self.start, "dense", zero=zero)
        again = here().size == 1  # else others wait in the midst of a backward pass for one that fails
        rows = RowBudget(tokens, self.work, self.report, choice, again=again)
        rows.settle(self.groups)
        return rows

    def _reference(self, cache: LogpCache, rows: RowBudget, zero: int) -> PerToken:
        """The start model's log-probabilities. A model that is held in parts is one here, too."""
        items = (bare(group, item) for group in self.groups for item in group.items)
        training = self.config.n_epochs * sum(item.tokens for item in items)
        scoring = 0

        def tick(done: int, total: int) -> None:
            nonlocal scoring
            scoring = round(total * FORWARD_SHARE)
            self.report.progress(round(done * FORWARD_SHARE), scoring + training)
            if self.report.stop_requested:
                raise Stopped

        def parted(model: PreTrainedModel) -> Reading:
            return Reading(in_parts(model, self.start, names_of(model, self.start), {}))

        if zero == 3 and packs(self.start):  # others have rows of several passes, and other ranks other passes
            found = known_or_scored(partial(empty_model, self.start), self.groups, cache, rows, tick, reader_of=parted)
        else:
            found = known_or_scored(partial(load_model, self.start), self.groups, cache, rows, tick)
        give_back_freed_memory()
        self.report.before += scoring
        return found

    def _trained(
        self,
        trainer_class: Callable[..., Any],
        settings_class: Callable[..., Any],
        items: Sequence[Item],
        rows: RowBudget,
        zero: int,
    ) -> dict[str, float]:
        """Train, in smaller micro-batches from the last checkpoint on where memory proves too small."""
        plan, tokenizer = Plan(self.groups, items, self.config), load_tokenizer(self.start)

        def attempt(tokens: int) -> dict[str, float]:
            passes = passes_of(self.config.batch_size, here().size, max(item.padded for item in items), tokens)
            model = without_dropout(plain_model(self.start, where=_place(zero)))
            names, weights, settings = names_of(model, self.start), text_weights(model), self._settings(passes, rows)
            if zero:
                settings |= _by_deepspeed(zero_settings(weights, self.config, zero), settings)
                shared_out(model, weights, settings["deepspeed"])
            trainer = trainer_class(
                plan=plan,
                passes=passes,
                parameters=weights,
                report=self.report,
                model=model,
                args=settings_class(**settings),
                processing_class=tokenizer,
            )
            means: dict[str, float] = trainer.run()
            with trainer.kept.weights() as values:
                if values:
                    save_weights(values, names, self.start, self.out)
            return {"trained_weights": sum(names.sizes.values()), **means}

        return rows.fit(attempt, self.groups)

    def _settings(self, passes: int, rows: RowBudget) -> dict[str, Any]:
        """What transformers' TrainingArguments have: nothing is logged, evaluated or saved but as we ask for it."""
        config, where = self.config, device().type
        return {
            "output_dir": str(self.work / "trl"),
            "seed": config.seed,
            "num_train_epochs": 1,
            "per_device_train_batch_size": -(-config.batch_size // (passes * here().size)),
            "gradient_accumulation_steps": passes,
            "learning_rate": config.learning_rate,
            "max_grad_norm": config.max_grad_norm,
            "max_length": None,
            "bf16": dtype_of(config.precision) == torch.bfloat16,
            "use_cpu": where == "cpu",
            "dataloader_pin_memory": where != "cpu",
            "gradient_checkpointing": config.gradient_checkpointing is True or rows.checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }


@contextmanager
def _library(zero: int) -> Iterator[ModuleType]:
    """TRL's trainers, and accelerate in its place among the ranks. Raises StageError where TRL is not installed."""
    try:
        from allo_engine.training import trl_trainers  # here: it takes seconds, and few stages want it
    except ImportError:
        raise StageError(
            "bad_config", "trainer 'trl' needs TRL: pip install 'allo[trl]', or leave trainer out."
        ) from None
    with trl_trainers.among_ranks(zero):
        yield trl_trainers


def _place(zero: int) -> torch.device | None:
    """Where the start model is loaded to; what no device holds, on the host, from where it is shared out."""
    return torch.device("cpu") if zero == 3 else None


def _by_deepspeed(shared: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in transformers' settings where DeepSpeed shares out. Its own mode of 16 bits stays off: autocast is
    entered by us (see zero.py). accelerate knows of no DeepSpeed on CPUs, but takes a state that says so.
    """
    sizes = {
        "train_micro_batch_size_per_gpu": settings["per_device_train_batch_size"],
        "gradient_accumulation_steps": settings["gradient_accumulation_steps"],
    }
    return {
        "deepspeed": {**shared, **sizes},
        "accelerator_config": {"use_configured_state": True},
        "use_cpu": False,
        "bf16": False,
    }


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The same in training as in evaluation, as everywhere in the engine."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model
