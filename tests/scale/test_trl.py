"""TRL's trainers on DeepSpeed, over two processes or three: they train as one, and any number of them goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.scale.test_deepspeed import furthest, lines_of, steps_of
from tests.unit.engine.test_main import finish, start, write_task
from tests.unit.engine.test_ranks import begun
from tests.unit.engine.training.trl_ranked import SLOWLY, Case, launch, write_material
from tests.waiting import PATIENCE

STAGES = (1, 2, 3)
KINDS: Mapping[str, Case] = {
    "pairs": Case("pairs", "warmup", {"micro_batch_tokens": 200}),  # several passes a step
    "ipo": Case("ipo", "warmup", {"loss": "ipo", "weight_decay": 0.01}),
    "examples": Case("examples", "sft", {"micro_batch_tokens": 60, "max_grad_norm": 0.5}),
    "again": Case("again", "sft", {"gradient_checkpointing": True}),
    "narrow": Case("narrow", "warmup", {"precision": "bfloat16", "learning_rate": 1e-6}),
    "offload": Case("offload", "warmup", {"offload": True}),
}

Weights = dict[str, Tensor]


def weights_of(root: Path, name: str) -> Weights:
    return load_file(root / name / "0" / "checkpoint" / "model.safetensors")


def shared(case: Case, zero: int) -> Case:
    return replace(case, name=f"{case.name}-{zero}", settings={**case.settings, "zero": zero})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of training in one process, and in every stage of ZeRO on two; and some that are stopped."""
    root = write_material(tmp_path_factory.mktemp("trl"))
    stopped = Case("stopped", "warmup", {"micro_batch_tokens": 200}, stop=4)
    launch(root, 1, [*KINDS.values(), shared(stopped, 0)])
    diverges = Case("diverges", "sft", {"learning_rate": 1e9})
    launch(root, 2, [shared(case, zero) for case in (*KINDS.values(), stopped, diverges) for zero in STAGES])
    return root


@pytest.mark.parametrize("zero", STAGES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "narrow"])
def test_two_processes_end_in_the_weights_of_one(root: Path, kind: str, zero: int) -> None:
    """The last batch of an epoch has one item, so that one process has none."""
    ours, expected = weights_of(root, f"{kind}-{zero}"), weights_of(root, kind)
    assert furthest(ours, expected) < 1e-5
    assert furthest(ours, load_file(root / "model" / "model.safetensors")) > 1e-3


@pytest.mark.parametrize("zero", STAGES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "narrow"])
def test_every_step_has_the_figures_of_one_process(root: Path, kind: str, zero: int) -> None:
    ours, expected = steps_of(root, f"{kind}-{zero}"), steps_of(root, kind)
    assert len(ours) == 6
    for step, other in zip(ours, expected, strict=True):
        assert step == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("zero", STAGES)
def test_in_16_bits_the_trained_values_stay_float32(root: Path, zero: int) -> None:
    """Steps of 1e-6 would be lost on weights of 16 bits, whose last bit is worth a thousand times as much."""
    start = load_file(root / "model" / "model.safetensors")
    ours, expected = weights_of(root, f"narrow-{zero}"), weights_of(root, "narrow")
    moved, other = (torch.cat([(w[name] - start[name]).flatten() for name in start]) for w in (ours, expected))
    assert all(weight.dtype == torch.float32 for weight in ours.values())
    assert float((moved != 0).float().mean()) > 0.9
    assert float(torch.nn.functional.cosine_similarity(moved, other, dim=0)) > 0.99


@pytest.mark.parametrize("zero", STAGES)
def test_processes_agree_on_a_stop_and_on_what_is_not_finite(root: Path, zero: int) -> None:
    """One of them is asked to stop."""
    assert json.loads((root / f"stopped-{zero}" / "endings.json").read_text()) == ["stopped"] * 2
    assert json.loads((root / f"diverges-{zero}" / "endings.json").read_text()) == ["diverged"] * 2


RESUMED = [(2, 3, 1, 0), (2, 1, 2, 1), (2, 2, 2, 3), (1, 0, 2, 2), (2, 3, 3, 3)]
"""By how many processes it was saved, in which stage of ZeRO; and by how many it is gone on with, in which."""


@pytest.fixture(scope="module")
def resumed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    again = write_material(tmp_path_factory.mktemp("resumed"))
    cases: dict[int, list[Case]] = {1: [], 2: [], 3: []}
    for number, (_, saved, size, zero) in enumerate(RESUMED):
        (again / f"from-{number}").symlink_to(root / f"stopped-{saved}")
        cases[size].append(Case(f"resumed-{number}", "warmup", {"zero": zero}, resumes=f"from-{number}"))
    for size, some in cases.items():
        launch(again, size, some)
    return again


@pytest.mark.parametrize("number", range(len(RESUMED)), ids=[str(row) for row in RESUMED])
def test_what_some_processes_saved_any_number_goes_on_from(root: Path, resumed: Path, number: int) -> None:
    name = f"resumed-{number}"
    assert [step["step"] for step in steps_of(resumed, name)] == [5, 6]
    assert any("Resumed behind step 4" in line.get("message", "") for line in lines_of(resumed, name))
    assert furthest(weights_of(resumed, name), weights_of(root, "pairs")) < 1e-5


def test_a_killed_process_costs_an_attempt_and_no_data(root: Path, tmp_path: Path) -> None:
    """The memory that it is given asks for ZeRO 3."""
    inputs = {"model": root / "model", "pairs": root / "pairs"}
    settings: dict[str, Any] = {**SLOWLY, "trainer": "trl", "n_epochs": 20, "checkpoint_seconds": 0.01}
    settings |= {"devices": 2, "memory_gb": 1e-6}
    whole, cut = (write_task(tmp_path / name, "warmup", settings, inputs) for name in ("whole", "cut"))
    status, lines = finish(start("warmup", whole))
    assert status == 0, lines[-1]
    assert [line["data"] for line in lines if "zero" in line.get("data", {})] == [{"zero": 3}], "the least that fits"
    process = start("warmup", cut)
    (other,) = begun(process, 20)
    other.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    status, lines = finish(start("warmup", cut))
    assert (status, lines[-1]["type"]) == (0, "result")
    assert any("Resumed" in line.get("message", "") for line in lines)
    ours, expected = (load_file(tmp_path / name / "out/checkpoint/model.safetensors") for name in ("cut", "whole"))
    assert furthest(ours, expected) < 1e-6
