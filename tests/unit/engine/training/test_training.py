"""The loop: what it must never depend on, and that a resumed run is the run that was not interrupted."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel

from allo_engine.checkpoints.delta import Values
from allo_engine.config import ImproveConfig, SftConfig, TrainingConfig
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.attention import NAME
from allo_engine.model.loading import recompute_activations
from allo_engine.model.logp_cache import LogpCache
from allo_engine.model.logps import PerToken, token_logps
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group, build_row, singles
from allo_engine.report import Report, StageError, Stopped
from allo_engine.training import losses
from allo_engine.training.figures import Figures
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import CrossEntropy, Logps, PairObjective, TokenNpo
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


def every_seventh(model: LlamaForCausalLM) -> Values:
    return {
        name: (np.arange(0, p.numel(), 7), p.detach().flatten().numpy()[::7].copy())
        for name, p in model.named_parameters()
    }


def dense(model: LlamaForCausalLM, config: TrainingConfig, work: Path, report: Report) -> Trainer:
    rows = RowBudget(config.micro_batch_tokens or 512, work, report)
    return Trainer(model, dict(model.named_parameters()), config, report, work, rows)


def dpo_run(config: TrainingConfig, work: Path, report: Report, sparse: bool = False) -> Weights:
    model = tiny_model()
    if sparse:
        masked = SparseModel(model, every_seventh(model))
        rows = RowBudget(config.micro_batch_tokens or 512, work, report)
        trainer = Trainer(model, masked.values, config, report, work, rows, written=masked.write_back)
    else:
        trainer = dense(model, config, work, report)
    groups = pair_groups()
    reference = trainer.reference(groups, LogpCache(work, work, "tiny", config.precision))
    objective = PairObjective(reference, 0.1, lambda chosen, rejected: losses.filtered_dpo(chosen, rejected, 0.1, 0.3))
    trainer.train(groups, objective)
    if sparse:
        return {name: torch.from_numpy(values.copy()) for name, (_, values) in masked.trained().items()}
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


class StopsBehindItsCheckpoint(Report):
    """Asks to stop as soon as a given step is saved, and notes what is."""

    def __init__(self, stream: Lines, step: int) -> None:
        super().__init__(stream)
        self.saved: list[int] = []
        self._step = step

    def checkpoint(self, step: int) -> None:
        self.saved.append(step)
        self.stop_requested = step == self._step


def test_who_is_asked_to_stop_saves_no_step_twice(tmp_path: Path, stream: Lines) -> None:
    config = ImproveConfig(batch_size=6, checkpoint_seconds=1e-9)  # the first step is saved, later ones by their pace
    report = StopsBehindItsCheckpoint(stream, 1)
    with pytest.raises(Stopped):
        dpo_run(config, tmp_path, report)
    assert report.saved == [1]
    at_once = StopsBehindItsCheckpoint(stream, 0)
    at_once.stop_requested = True
    with pytest.raises(Stopped):
        dpo_run(config, tmp_path, at_once)
    assert at_once.saved == []


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
    trainer = dense(model, TrainingConfig(micro_batch_tokens=4), tmp_path, report)
    objective = TokenNpo(trainer.reference(groups, LogpCache(tmp_path, tmp_path, "tiny", "auto")), weights, 0.1)
    assert sum(objective.weight(group) for group in groups) == 8
    metrics = trainer.train(groups, objective)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)


class NotANumber:
    """An objective that gives NaN."""

    given: Sequence[PerToken] = ()

    def weight(self, group: Group) -> float:
        return 1.0

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[torch.Tensor, Figures]:
        return logps[0].sum() * math.nan, {}


def test_a_loss_that_is_not_finite_ends_the_stage_with_what_to_change(tmp_path: Path, report: Report) -> None:
    model = tiny_model()
    trainer = dense(model, SftConfig(), tmp_path, report)
    objective = NotANumber()
    with pytest.raises(StageError, match="learning_rate"):
        trainer.train([singles(0, [0], [[5, 1]])], objective)


class NotANumberAt:
    """Cross-entropy, but NaN at some of the times that it is asked."""

    given: Sequence[PerToken] = ()

    def __init__(self, times: set[int]) -> None:
        self._times, self._asked = times, 0

    def weight(self, group: Group) -> float:
        return 1.0

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[torch.Tensor, Figures]:
        self._asked += 1
        return -logps[0].sum() * (math.nan if self._asked in self._times else 1.0), {}


def nan_run(times: set[int], work: Path, report: Report) -> tuple[dict[str, float], Weights]:
    model = tiny_model()
    config = SftConfig(learning_rate=1e-3, n_epochs=10, batch_size=1, checkpoint_seconds=1e-9)
    metrics = dense(model, config, work, report).train([singles(0, [0], [[5, 6, 1]])], NotANumberAt(times))
    return metrics, {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_step_that_is_not_finite_changes_nothing_and_is_told(tmp_path: Path, report: Report, stream: Lines) -> None:
    metrics, weights = nan_run({3, 4}, tmp_path / "nan", report)
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert math.isfinite(metrics["loss"])
    assert sum("passed over" in line.get("message", "") for line in stream.lines()) == 2


def test_three_in_a_row_go_back_to_the_checkpoint_once(tmp_path: Path, report: Report, stream: Lines) -> None:
    whole = nan_run(set(), tmp_path / "whole", report)[1]
    healed = nan_run({5, 6, 7}, tmp_path / "healed", report)[1]
    told = [line["message"] for line in stream.lines() if line.get("level") == "warn"]
    assert any(one.startswith("Resumed behind step") and "3 steps in a row gave no finite loss" in one for one in told)
    assert all(torch.equal(weight, healed[name]) for name, weight in whole.items())
    with pytest.raises(StageError, match="finite"):
        nan_run(set(range(5, 50)), tmp_path / "lost", report)


def test_the_reference_is_not_computed_twice_for_the_same_weights_ids_and_precision(
    tmp_path: Path, report: Report
) -> None:
    groups = pair_groups()
    model = tiny_model()
    trainer = dense(model, TrainingConfig(), tmp_path, report)
    first = trainer.reference(groups[:5], LogpCache(tmp_path, tmp_path, "tiny", "float32"))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # whatever is computed from now on differs
    again = trainer.reference(groups, LogpCache(tmp_path, tmp_path, "tiny", "float32"))
    assert all(torch.equal(again[key], logps) for key, logps in first.items())
    assert all(torch.allclose(again[6, i], -torch.tensor(261.0).log()) for i in range(5))
    for weights, precision in (("tuned", "float32"), ("tiny", "bfloat16")):
        other = trainer.reference(groups[:1], LogpCache(tmp_path, tmp_path, weights, precision))  # type: ignore[arg-type]
        assert torch.allclose(other[0, 0], -torch.tensor(261.0).log(), atol=1e-2)


def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, report: Report) -> None:
    groups = pair_groups(2)
    trainer = dense(tiny_model(), TrainingConfig(), tmp_path, report)
    cache = LogpCache(tmp_path, tmp_path, "tiny", "float32")
    first = trainer.reference(groups, cache)
    (tmp_path / "logps.db").write_bytes(b"not a database at all, and long enough to be looked at" * 100)
    assert all(torch.equal(logps, first[key]) for key, logps in trainer.reference(groups, cache).items())
    assert len(cache.read(groups)) == len(first)


@pytest.mark.parametrize("sparse", [False, True])
def test_computing_activations_twice_changes_nothing(tmp_path: Path, report: Report, sparse: bool) -> None:
    settings = {"learning_rate": 1e-3, "batch_size": 6, "epsilon": 1e-3}
    kept = dpo_run(ImproveConfig(**settings), tmp_path / "kept", report, sparse)
    again = dpo_run(ImproveConfig(gradient_checkpointing=True, **settings), tmp_path / "again", report, sparse)
    assert all(torch.allclose(weight, again[name], atol=1e-6) for name, weight in kept.items())


def test_activations_are_really_not_kept() -> None:
    row = build_row(pair_groups(4))
    held = {}
    for recompute in (False, True):
        model = tiny_model()
        if recompute:
            recompute_activations(model)
        tensors: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t.nbytes) or t, lambda t: t):  # noqa: B023
            token_logps(model, row)
        held[recompute] = sum(tensors)
        assert not model.model.layers[0].mlp.training
    assert held[True] < held[False] / 3


def test_a_dense_stage_computes_in_16_bits_around_float32_weights(tmp_path: Path, report: Report) -> None:
    settings = {"learning_rate": 1e-6, "batch_size": 6}
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = dpo_run(ImproveConfig(precision="bfloat16", **settings), tmp_path / "narrow", report)
    exact = dpo_run(ImproveConfig(precision="float32", **settings), tmp_path / "wide", report)
    assert all(weight.dtype == torch.float32 for weight in after.values())
    steps = torch.cat([(after[name] - weight).flatten() for name, weight in before.items()])
    wide = torch.cat([(exact[name] - weight).flatten() for name, weight in before.items()])
    assert float((steps != 0).float().mean()) > 0.9, "steps of 1e-6 survive, as the weights are not rounded"
    assert float(torch.nn.functional.cosine_similarity(steps, wide, dim=0)) > 0.8


def test_sft_learns_its_examples(tmp_path: Path, report: Report) -> None:
    model = tiny_model()
    config = SftConfig(learning_rate=1e-2, n_epochs=40, batch_size=2)
    trainer = dense(model, config, tmp_path, report)
    metrics = trainer.train([singles(0, [0, 10], [[20, 21, 1]]), singles(1, [0, 11], [[30, 1]])], CrossEntropy())
    assert metrics["loss"] < 0.05


class SmallDevice(LlamaModel):
    """A model on a device that holds rows of 40 tokens and no longer ones."""

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        if input_ids.shape[1] > 40:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(input_ids=input_ids, **more)


def test_where_memory_is_short_the_rows_are_and_the_result_stays(tmp_path: Path, report: Report, stream: Lines) -> None:
    found = []
    for number, small in enumerate((False, True)):
        model = tiny_model()
        model.set_attn_implementation(NAME)
        model.model.__class__ = SmallDevice if small else LlamaModel
        config = SftConfig(learning_rate=1e-3, batch_size=100, n_epochs=2, epsilon=1e-3, micro_batch_tokens=256)
        trainer = dense(model, config, tmp_path / str(number), report)
        trainer.train([singles(key, [0, 5 + key], [[20, 30 + key, 40, 1]]) for key in range(40)], CrossEntropy())
        found.append([weight.detach().clone() for weight in model.parameters()])
    warnings = [line for line in stream.lines() if line.get("level") == "warn"]
    assert [line["data"]["micro_batch_tokens"] for line in warnings] == [128, 64, 32]
    assert all(torch.allclose(ours, theirs, atol=1e-5) for ours, theirs in zip(*found, strict=True))


def test_a_plan_that_no_memory_would_hold_is_refused_before_it_is_made(tmp_path: Path, report: Report) -> None:
    groups = pair_groups(1) * 20_000
    with pytest.raises(StageError, match="lower n_epochs"):
        dense(tiny_model(), SftConfig(n_epochs=10_000), tmp_path, report).train(groups, CrossEntropy())
