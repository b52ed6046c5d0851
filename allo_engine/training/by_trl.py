"""TRL as a baseline's trainer: its DPOTrainer or SFTTrainer runs in the stage's processes, in transformers' own loop.

TRL's are the padded batches, the passes and the loss; accelerate brings the processes together, by DeepSpeed where they
share out what they train (zero.py) and by torch's DDP where they do not. The engine's are, so that nothing else
differs, the token ids and their order, AdamW and its rates, the reference's log-probabilities (scored once, so that no
second model is held), what is reported, and the checkpoints.

A batch has `batch_size` items whatever problems they are of, and a step's gradient is the mean over its batch. It is
cut into parts, one a pass and process, that differ by one item at most: each counts by its items, and one that is
empty for nothing. So no item is taken twice or left out, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from allo_engine.checkpoints.names import names_of, text_weights
from allo_engine.config import BaselineConfig, SftConfig, WarmupConfig
from allo_engine.model.loading import device, dtype_of, load_model, plain_model, save_weights
from allo_engine.model.logp_cache import LogpCache, known_or_scored
from allo_engine.model.logps import PerToken
from allo_engine.model.memory import keep_freed_memory
from allo_engine.model.rows import RowBudget, fitting_rows
from allo_engine.model.sequences import Group, batches
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped
from allo_engine.training.choice import stage_of
from allo_engine.training.loop import FORWARD_SHARE, MOST_PLANNED
from allo_engine.training.optimizer import learning_rate
from allo_engine.training.zero import Sharded, shared_out, zero_settings

UNSCORED = -100
"""The label of a token that is read and not predicted, as transformers has it."""


@dataclass(frozen=True)
class Item:
    """What TRL is given of an item of a group: its columns.

    `tokens` are all that it has, `padded` what it takes in a batch with others as long, `weight` is its part in a mean.
    What trains nothing has no weight.
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

    def places(self, step: int) -> list[int]:
        """Where among the items those of a step's batch stand."""
        epoch, inside = divmod(step, self.steps_an_epoch)
        first = inside * self.config.batch_size
        return self.order(epoch)[first : first + self.config.batch_size]

    def batch(self, step: int) -> list[Item]:
        return [self.items[place] for place in self.places(step)]

    def weight(self, step: int) -> int:
        return sum(item.weight for item in self.batch(step))

    def nothing(self) -> Item:
        """What a process goes through that has no item left while others have: all take equally many passes."""
        shortest = min(self.items, key=lambda item: item.padded)
        columns = dict(shortest.columns)
        if "labels" in columns:
            columns["labels"] = [UNSCORED] * len(columns["labels"])
        return replace(shortest, columns=columns, weight=0)

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
        config, zero = self.config, stage_of(self.config, self.start, self.report)
        assert isinstance(config, WarmupConfig)
        with _library(zero) as library:
            rows = self._rows(zero)
            reference = self._reference(cache, rows, zero)
            items = [_pair(group, item, reference) for group in self.groups for item in group.items]
            own = {
                "beta": config.beta,
                "loss_type": [config.loss],
                "label_smoothing": config.label_smoothing,
                "precompute_ref_log_probs": True,
            }
            return self._trained(library.PairTrainer, partial(library.DPOConfig, **own), items, rows, zero)

    def examples(self) -> dict[str, float]:
        """By SFTTrainer. Raises what `pairs` does."""
        assert isinstance(self.config, SftConfig)
        zero = stage_of(self.config, self.start, self.report)
        with _library(zero) as library:
            items = [_example(group, index) for group in self.groups for (index,) in group.items]
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
        training = self.config.n_epochs * sum(_tokens(group, item) for group in self.groups for item in group.items)
        scoring = 0

        def tick(done: int, total: int) -> None:
            nonlocal scoring
            scoring = round(total * FORWARD_SHARE)
            self.report.progress(round(done * FORWARD_SHARE), scoring + training)
            if self.report.stop_requested and rows.again:
                raise Stopped

        def in_parts(model: PreTrainedModel) -> Sharded | None:
            return Sharded(model, text_weights(model), self.config, zero) if zero == 3 else None

        load = partial(load_model, self.start, where=_place(zero))
        found = known_or_scored(load, self.groups, cache, rows, tick, reader_of=in_parts)
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


def passes_of(batch_size: int, ranks: int, padded: int, tokens: int) -> int:
    """The fewest passes in which processes go through a batch, so many tokens at most at once, of items that are all
    `padded` to as many.
    """
    return -(-batch_size // (ranks * max(1, tokens // padded)))


def parts(batch: Sequence[int], passes: int, ranks: int) -> list[list[Sequence[int]]]:
    """A batch's items by pass and rank, in parts that differ by one item at most."""
    edges = [len(batch) * part // (passes * ranks) for part in range(passes * ranks + 1)]
    found = [batch[first:last] for first, last in pairwise(edges)]
    return [found[number * ranks : (number + 1) * ranks] for number in range(passes)]


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The same in training as in evaluation, as everywhere in the engine."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model
