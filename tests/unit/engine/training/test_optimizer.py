"""Moments in 8 bits, by bitsandbytes: a quarter as large, near enough, and resumed to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from allo_engine.config import SftConfig
from allo_engine.model.memory import Use, held_bytes
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import singles
from allo_engine.model.shape import Shape, shape_from
from allo_engine.report import Report, Stopped
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import CrossEntropy
from tests.tiny import tiny_model
from tests.unit.engine.conftest import Lines

GROUPS = [singles(key, [0, 5 + key], [[20 + key % 7, 30 + key % 5, 40, 1]]) for key in range(24)]
SETTINGS = {"learning_rate": 3e-3, "batch_size": 4, "n_epochs": 5, "gradient_checkpointing": False}


class StopAt(Report):
    """Asks to stop when a given step was reported."""

    def __init__(self, step: int) -> None:
        super().__init__(Lines())
        self._step = step

    def progress(self, step: int, total: int, metrics: dict[str, float] | None = None) -> None:  # type: ignore[override]
        super().progress(step, total, metrics)
        self.stop_requested = bool(metrics) and metrics.get("step") == self._step


def trainer_of(model: LlamaForCausalLM, moments: str, work: Path, report: Report) -> Trainer:
    config = SftConfig(moments=moments, **SETTINGS)
    return Trainer(model, dict(model.named_parameters()), config, report, work, RowBudget(512, work, report))


def trained(moments: str, work: Path, report: Report) -> tuple[LlamaForCausalLM, dict[str, float]]:
    model = tiny_model()
    metrics = trainer_of(model, moments, work, report).train(GROUPS, CrossEntropy())
    return model, metrics


def test_moments_in_8_bits_learn_what_moments_in_32_bits_learn(tmp_path: Path, report: Report) -> None:
    """The loss falls from 5.9 to less than 3.2; what 8 bits leave out of it is a hundredth."""
    (_, exact), (_, rounded) = (trained(moments, tmp_path / moments, report) for moments in ("float32", "8bit"))
    assert exact["loss"] < 3.2
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.03)
    assert rounded["loss"] != exact["loss"]


@pytest.mark.parametrize("step", [1, 7])
def test_a_resumed_run_has_the_moments_to_the_bit(tmp_path: Path, report: Report, step: int) -> None:
    whole, _ = trained("8bit", tmp_path / "whole", report)
    with pytest.raises(Stopped):
        trainer_of(tiny_model(), "8bit", tmp_path / "cut", StopAt(step)).train(GROUPS, CrossEntropy())
    resumed, _ = trained("8bit", tmp_path / "cut", report)
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_the_formula_counts_is_what_the_optimizer_holds(tmp_path: Path, report: Report) -> None:
    """Of weights of 4,096 entries and more; smaller ones keep theirs in float32."""
    model = tiny_model()
    trainer = trainer_of(model, "8bit", tmp_path, report)
    trainer.train(GROUPS, CrossEntropy())
    large = [weight for weight in model.parameters() if weight.numel() >= 4096]
    assert large
    states = [trainer._descent.optimizer.state[weight] for weight in large]
    held = sum(state[key].nbytes for state in states for key in ("state1", "state2", "absmax1", "absmax2"))
    weights = sum(weight.numel() for weight in large)
    assert held == pytest.approx(held_bytes(_of(weights), Use("dense", 4, moments="8bit")) - 8 * weights, rel=0.01)


def _of(weights: int) -> Shape:
    sizes = {"hidden_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 1}
    return shape_from(sizes, {"weight": [weights]}, True)
