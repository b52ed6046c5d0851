"""The loop: what it must never depend on, and that a resumed run is the run that was not interrupted."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from allo_engine import losses
from allo_engine.config import ImproveConfig, SftConfig, TrainingConfig
from allo_engine.objectives import CrossEntropy, PairObjective, TokenNpo
from allo_engine.report import Report, StageError, Stopped
from allo_engine.sequences import Group, singles
from allo_engine.sparse import SparseModel
from allo_engine.training import Objective, Trainer
from tests.tiny import tiny_model
from tests.unit.engine.conftest import Lines

Weights = dict[str, torch.Tensor]


def pair_groups(count: int = 8) -> list[Group]:
    source = random.Random(0)
    groups = []
    for key in range(count):
        prompt = [0, *(source.randrange(5, 261) for _ in range(source.randrange(2, 9)))]
        texts = [[source.randrange(5, 261) for _ in range(source.randrange(1, 12))] + [1] for _ in range(5)]
        groups.append(Group(key, prompt, dict(enumerate(texts)), [(0, 2), (1, 3), (0, 4)]))
    return groups


def dpo_run(config: TrainingConfig, work: Path, report: Report, sparse: bool = False) -> Weights:
    model = tiny_model()
    if sparse:
        places = {name: np.arange(0, p.numel(), 7) for name, p in model.named_parameters()}
        masked = SparseModel(model, places)
        trainer = Trainer(model, masked.values, config, report, work, written=masked.write_back)
    else:
        trainer = Trainer(model, dict(model.named_parameters()), config, report, work)
    groups = pair_groups()
    objective = PairObjective(
        trainer.reference(groups), 0.1, lambda chosen, rejected: losses.filtered_dpo(chosen, rejected, 0.1, 0.3)
    )
    trainer.train(groups, objective, reference=True)
    if sparse:
        masked.detach(model)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("sparse", [False, True])
def test_the_size_of_a_micro_batch_changes_nothing(tmp_path: Path, report: Report, sparse: bool) -> None:
    settings = {"learning_rate": 1e-3, "batch_size": 6, "n_epochs": 2, "epsilon": 1e-3}
    small = dpo_run(ImproveConfig(micro_batch_tokens=16, **settings), tmp_path / "small", report, sparse)
    large = dpo_run(ImproveConfig(micro_batch_tokens=4096, **settings), tmp_path / "large", report, sparse)
    for name, weight in small.items():
        assert torch.allclose(weight, large[name], atol=1e-5), name


class StopAt(Report):
    """Asks to stop when a given optimizer step was reported."""

    def __init__(self, stream: Lines, step: int) -> None:
        super().__init__(stream)
        self._step = step

    def progress(self, step: int, total: int, metrics: dict[str, float] | None = None) -> None:  # type: ignore[override]
        super().progress(step, total, metrics)
        if metrics and metrics.get("step") == self._step:
            self.stop_requested = True


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_run_stopped_at_any_step_ends_in_the_same_bits(
    tmp_path: Path, report: Report, stream: Lines, step: int, sparse: bool
) -> None:
    config = ImproveConfig(learning_rate=1e-3, batch_size=6, n_epochs=2)
    whole = dpo_run(config, tmp_path / "whole", report, sparse)
    with pytest.raises(Stopped):
        dpo_run(config, tmp_path / "cut", StopAt(stream, step), sparse)
    resumed = dpo_run(config, tmp_path / "cut", Report(stream), sparse)
    assert f"Resumed behind step {step}." in [line.get("message") for line in stream.lines()]
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, report: Report, stream: Lines) -> None:
    config = ImproveConfig(learning_rate=1e-3, batch_size=6)
    whole = dpo_run(config, tmp_path / "whole", report)
    with pytest.raises(Stopped):
        dpo_run(config, tmp_path / "cut", StopAt(stream, 2))
    (checkpoint,) = (tmp_path / "cut").glob("step-*.safetensors")
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(content)
    resumed = dpo_run(config, tmp_path / "cut", Report(stream))
    assert any("damaged" in line.get("message", "") for line in stream.lines())
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_at_the_first_step_the_log_ratio_is_zero(tmp_path: Path, report: Report, stream: Lines) -> None:
    dpo_run(ImproveConfig(learning_rate=1e-3, batch_size=100), tmp_path, report)
    first = next(line["metrics"] for line in stream.lines() if line["type"] == "progress" and line["metrics"])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["reward_margin"] == pytest.approx(0.0, abs=1e-5)


def test_the_divisor_of_npo_is_the_batchs_number_of_weighted_tokens(tmp_path: Path, report: Report) -> None:
    # At log-ratio 0 every weighted token's loss is ln 2, however the batch is cut and whatever the share of weights.
    groups = [singles(key, [0, 9], [[30 + key, 40, 1], [50, 1]]) for key in range(4)]
    weights = {(key, i): torch.tensor([1.0, 0.0, 0.0][: 3 - i]) for key in range(4) for i in range(2)}
    model = tiny_model()
    trainer = Trainer(model, dict(model.named_parameters()), TrainingConfig(micro_batch_tokens=4), report, tmp_path)
    objective = TokenNpo(trainer.reference(groups), weights, 0.1)
    assert sum(objective.weight(group) for group in groups) == 8
    metrics = trainer.train(groups, objective)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)


class NotANumber:
    """An objective that gives NaN."""

    def weight(self, group: Group) -> float:
        return 1.0

    def __call__(
        self, group: Group, logps: dict[int, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, tuple[float, float]]]:
        return logps[0].sum() * math.nan, {}


def test_a_loss_that_is_not_finite_ends_the_stage_with_what_to_change(tmp_path: Path, report: Report) -> None:
    model = tiny_model()
    trainer = Trainer(model, dict(model.named_parameters()), SftConfig(), report, tmp_path)
    objective: Objective = NotANumber()  # type: ignore[assignment]
    with pytest.raises(StageError, match="learning_rate"):
        trainer.train([singles(0, [0], [[5, 1]])], objective)


def test_sft_learns_its_examples(tmp_path: Path, report: Report) -> None:
    model = tiny_model()
    config = SftConfig(learning_rate=1e-2, n_epochs=40, batch_size=2)
    trainer = Trainer(model, dict(model.named_parameters()), config, report, tmp_path)
    metrics = trainer.train([singles(0, [0, 10], [[20, 21, 1]]), singles(1, [0, 11], [[30, 1]])], CrossEntropy())
    assert metrics["loss"] < 0.05


class SmallDevice(LlamaForCausalLM):
    """A model on a device that holds rows of 40 tokens and no longer ones."""

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        if input_ids.shape[1] > 40:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(input_ids=input_ids, **more)


def test_where_memory_is_short_the_rows_are_and_the_result_stays(tmp_path: Path, report: Report, stream: Lines) -> None:
    found = []
    for number, small in enumerate((False, True)):
        model = tiny_model()
        model.__class__ = SmallDevice if small else LlamaForCausalLM
        config = SftConfig(learning_rate=1e-3, batch_size=100, n_epochs=2, epsilon=1e-3, micro_batch_tokens=256)
        trainer = Trainer(model, dict(model.named_parameters()), config, report, tmp_path / str(number))
        trainer.train([singles(key, [0, 5 + key], [[20, 30 + key, 40, 1]]) for key in range(40)], CrossEntropy())
        found.append([weight.detach().clone() for weight in model.parameters()])
    warnings = [line for line in stream.lines() if line.get("level") == "warn"]
    assert [line["data"]["micro_batch_tokens"] for line in warnings] == [128, 64, 32]
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(*found, strict=True))
