"""TRL as a baseline's trainer: its DPOTrainer or SFTTrainer runs in the stage's process, in transformers' own loop.

TRL's are the padded batches, the passes, the loss and the checkpoints. The engine's are, so that nothing else differs,
the token ids and their order, AdamW and its rates, the reference's log-probabilities (scored once, so that no second
model is held), what is reported, and the checkpoint that is left. A batch has `batch_size` items whatever problems they
are of, and a step's gradient is the mean over its batch: where an epoch's last batch leaves micro-batches of unlike
sizes, each counts by its size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from allo_engine.checkpoints.names import text_weights
from allo_engine.config import BaselineConfig, SftConfig, WarmupConfig
from allo_engine.model.loading import device, dtype_of, load_model, plain_model, save_model
from allo_engine.model.logp_cache import LogpCache, known_or_scored
from allo_engine.model.logps import PerToken
from allo_engine.model.memory import keep_freed_memory
from allo_engine.model.rows import RowBudget, fitting_rows
from allo_engine.model.sequences import Group, batches
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import Report, StageError, Stopped
from allo_engine.training.loop import FORWARD_SHARE, MOST_PLANNED
from allo_engine.training.optimizer import learning_rate, optimizer_of

UNSCORED = -100
"""The label of a token that is read and not predicted, as transformers has it."""


@dataclass(frozen=True)
class Item:
    """What TRL is given of an item of a group: its columns.

    `tokens` are all that it has, `padded` what it takes in a batch with others as long, `weight` is its part in a mean.
    """

    columns: Mapping[str, Any]
    tokens: int
    padded: int
    weight: int = 1


class Plan:
    """Which items each step takes: a pure function of seed, epoch and step."""

    def __init__(self, groups: Sequence[Group], items: Sequence[Item], config: BaselineConfig) -> None:
        if config.n_epochs * len(items) > MOST_PLANNED:
            raise StageError(
                "too_many_steps",
                f"{config.n_epochs} epochs of {len(items)} items are more than {MOST_PLANNED:,}: lower n_epochs.",
            )
        self.items, self.config = items, config
        self.steps_an_epoch = -(-len(items) // config.batch_size)
        self.steps = config.n_epochs * self.steps_an_epoch
        self.tokens_an_epoch = sum(item.tokens for item in items)
        self.order = cache(lambda epoch: _order(groups, config, epoch))

    def batch(self, step: int) -> list[Item]:
        epoch, inside = divmod(step, self.steps_an_epoch)
        first = inside * self.config.batch_size
        return [self.items[place] for place in self.order(epoch)[first : first + self.config.batch_size]]

    def tokens_before(self, step: int) -> int:
        epoch, inside = divmod(step, self.steps_an_epoch)
        steps = range(step - inside, step)
        return epoch * self.tokens_an_epoch + sum(item.tokens for one in steps for item in self.batch(one))

    def rate(self, step: int) -> float:
        return learning_rate(self.config, step, self.steps)


def _order(groups: Sequence[Group], config: BaselineConfig, epoch: int) -> list[int]:
    """One epoch's items, as places: the engine's own order of the groups, and each group's own."""
    first = list(accumulate((len(group.items) for group in groups), initial=0))
    order = (place for batch in batches(groups, config.batch_size, config.seed, epoch) for place in batch)
    return [item for place in order for item in range(first[place], first[place + 1])]


@dataclass(frozen=True)
class Stage:
    """A stage that TRL trains: from the model in `start`, into a checkpoint in `out`."""

    config: BaselineConfig
    start: Path
    groups: Sequence[Group]
    report: Report
    work: Path
    out: Path

    def pairs(self, cache: LogpCache) -> dict[str, float]:
        """By DPOTrainer. Raises Stopped behind a checkpoint, and StageError as the engine's own loop does."""
        config, library, rows = self.config, _library(), self._rows()
        assert isinstance(config, WarmupConfig)
        reference = self._reference(cache, rows)
        items = [_pair(group, item, reference) for group in self.groups for item in group.items]
        own = {
            "beta": config.beta,
            "loss_type": [config.loss],
            "label_smoothing": config.label_smoothing,
            "precompute_ref_log_probs": True,
        }
        return self._trained(library.PairTrainer, library.DPOConfig, own, items, rows)

    def examples(self) -> dict[str, float]:
        """By SFTTrainer. Raises what `pairs` does."""
        assert isinstance(self.config, SftConfig)
        library, rows = _library(), self._rows()
        items = [_example(group, index) for group in self.groups for (index,) in group.items]
        return self._trained(library.ExampleTrainer, library.SFTConfig, {}, items, rows)

    def _rows(self) -> RowBudget:
        if device().type == "cpu":
            keep_freed_memory()
        tokens, choice = fitting_rows(self.config, self.start, "dense")
        rows = RowBudget(tokens, self.work, self.report, choice)
        rows.settle(self.groups)
        return rows

    def _reference(self, cache: LogpCache, rows: RowBudget) -> PerToken:
        """The start model's log-probabilities."""
        training = self.config.n_epochs * sum(_tokens(group, item) for group in self.groups for item in group.items)
        scoring = 0

        def tick(done: int, total: int) -> None:
            nonlocal scoring
            scoring = round(total * FORWARD_SHARE)
            self.report.progress(round(done * FORWARD_SHARE), scoring + training)
            if self.report.stop_requested:
                raise Stopped

        found = known_or_scored(lambda: load_model(self.start), self.groups, cache, rows, tick)
        self.report.before += scoring
        return found

    def _trained(
        self,
        trainer_class: Callable[..., Any],
        settings_class: Callable[..., Any],
        own: Mapping[str, Any],
        items: Sequence[Item],
        rows: RowBudget,
    ) -> dict[str, float]:
        """Train, in smaller micro-batches from the last checkpoint on where memory proves too small."""
        plan, tokenizer = Plan(self.groups, items, self.config), load_tokenizer(self.start)

        def attempt(tokens: int) -> dict[str, float]:
            micro = micro_batch(self.config.batch_size, max(item.padded for item in items), tokens)
            model = without_dropout(plain_model(self.start))
            trainer = trainer_class(
                plan=plan,
                report=self.report,
                model=model,
                args=settings_class(**self._settings(micro, rows), **own),
                optimizers=self._optimizers(model, plan),
                processing_class=tokenizer,
            )
            means: dict[str, float] = trainer.run()
            save_model(model, self.start, self.out)
            weights = sum(weight.numel() for weight in text_weights(model).values())
            return {"trained_weights": weights, **means}

        return rows.fit(attempt, self.groups)

    def _settings(self, micro: int, rows: RowBudget) -> dict[str, Any]:
        """What transformers' TrainingArguments have: nothing is logged, evaluated or saved but as we ask for it."""
        config, where = self.config, device().type
        return {
            "output_dir": str(self.work / "trl"),
            "seed": config.seed,
            "num_train_epochs": config.n_epochs,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": config.batch_size // micro,
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
            "save_total_limit": 2,
            "report_to": [],
            "disable_tqdm": True,
        }

    def _optimizers(self, model: PreTrainedModel, plan: Plan) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = optimizer_of(text_weights(model).values(), self.config, device().type)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.rate(step) / self.config.learning_rate)
        return optimizer, rates


def _library() -> ModuleType:
    """Raises StageError where TRL is not installed. It runs in this process alone: a place among several that stands in
    the environment, where whatever started the worker left it, is not meant for it.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    try:
        from allo_engine.training import trl_trainers  # here: it takes seconds, and few stages want it
    except ImportError:
        raise StageError(
            "bad_config", "trainer 'trl' needs TRL: pip install 'allo[trl]', or leave trainer out."
        ) from None
    return trl_trainers


def _pair(group: Group, pair: tuple[int, ...], reference: PerToken) -> Item:
    columns: dict[str, Any] = {"prompt_ids": list(group.prompt)}
    for side, index in zip(("chosen", "rejected"), pair, strict=True):
        columns[f"{side}_ids"] = list(group.responses[index])
        columns[f"ref_{side}_logps"] = float(reference[group.key, index].sum())
    longest = len(group.prompt) + max(len(group.responses[index]) for index in pair)
    return Item(columns, _tokens(group, pair), 2 * longest)


def _example(group: Group, index: int) -> Item:
    response, scored = group.responses[index], group.scored(index)
    ids = [*group.prompt, *response]
    labels = [UNSCORED] * (len(ids) - len(scored)) + list(scored)
    return Item({"input_ids": ids, "labels": labels}, len(ids), len(ids), len(scored))


def _tokens(group: Group, item: Iterable[int]) -> int:
    return sum(len(group.prompt) + len(group.responses[index]) for index in item)


def micro_batch(batch_size: int, padded: int, tokens: int) -> int:
    """The most items, a divisor of the batch, whose `padded` tokens each fit in so many; at least one."""
    most = min(batch_size, max(1, tokens // padded))
    return next(size for size in range(most, 0, -1) if batch_size % size == 0)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The same in training as in evaluation, as everywhere in the engine."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model
