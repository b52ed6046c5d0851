"""What DeepSpeed shares out over two processes or three is trained as by one, and resumed by any number of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.scale.sharded import Case, groups, model_of, run, run_all, write_cases
from tests.tiny import save_tiny
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.test_main import finish, start, write_task
from tests.unit.engine.test_ranks import begun, material, ranked
from tests.unit.engine.training.test_gradients_of_ranks import autograd
from tests.waiting import PATIENCE

STAGES = (1, 2, 3)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "rows": {},  # several rows a step on each process: their gradients add up (open-instruct 1498)
    "pairs": {"objective": "pairs"},  # with a reference, which the shared-out model scores first
    "twice": {"twice": True},  # tied weights and a layer that is used twice (deepspeed 8224, 7718)
    "untied": {"tied": False},
    "nan": {"nan": True},  # one problem has no finite loss
    "narrow": {"precision": "bfloat16", "learning_rate": 1e-6},
    "again": {"again": True},  # activations computed twice
    "offload": {"offload": True},
}

Weights = dict[str, Tensor]


def launch(root: Path, size: int) -> None:
    """All of root's cases on so many processes, which have no compiler."""
    command = [sys.executable, "-m", "tests.scale.sharded", str(root)]
    compiler = {"CXX": "false", "TORCH_EXTENSIONS_DIR": str(root / "none")}
    environment = {**os.environ, **compiler, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, str(rank), str(size)], env=environment) for rank in range(size)]
    assert [process.wait(PATIENCE) for process in processes] == [0] * size


def weights_of(root: Path, name: str) -> Weights:
    return load_file(root / name / "weights.safetensors")


def lines_of(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name / "lines.jsonl").read_text().splitlines()]


def steps_of(root: Path, name: str) -> list[dict[str, float]]:
    """Their figures, but for the machine's own."""
    told = [line["metrics"] for line in lines_of(root, name) if line["type"] == "progress" and line["metrics"]]
    machines = ("memory_bytes", "tokens_per_second", "device_use")
    return [{name: step[name] for name in step if name not in machines} for step in told]


def furthest(ours: Weights, theirs: Weights) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((weight - theirs[name]).abs().max()) for name, weight in ours.items())


def before(case: Case) -> Weights:
    return {name: weight.detach() for name, weight in model_of(case).named_parameters()}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of training in one process, which shares out nothing."""
    root = tmp_path_factory.mktemp("alone")
    cases = [Case(kind, **settings) for kind, settings in KINDS.items()]
    write_cases(root, cases)
    for case in cases:
        run(case, root)
    return root


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of training in every stage of ZeRO on two processes; and some that are stopped."""
    root = tmp_path_factory.mktemp("shared")
    cases = [Case(f"{kind}-{zero}", zero, **settings) for kind, settings in KINDS.items() for zero in STAGES]
    cases += [Case(f"stopped-{zero}", zero, stop=2) for zero in STAGES]
    cases += [Case(f"gradient-{zero}", zero, twice=True, gradient=True) for zero in STAGES]
    write_cases(root, cases)
    launch(root, 2)
    return root


@pytest.mark.parametrize("zero", STAGES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "narrow"])
def test_two_processes_end_in_the_weights_of_one(alone: Path, shared: Path, kind: str, zero: int) -> None:
    ours, expected = weights_of(shared, f"{kind}-{zero}"), weights_of(alone, kind)
    assert furthest(ours, expected) < 1e-5
    assert furthest(ours, before(Case(kind, **KINDS[kind]))) > 1e-3


@pytest.mark.parametrize("zero", STAGES)
@pytest.mark.parametrize("kind", ["rows", "twice", "again"])
def test_every_steps_gradient_has_the_norm_that_autograd_finds(alone: Path, shared: Path, kind: str, zero: int) -> None:
    ours, expected = steps_of(shared, f"{kind}-{zero}"), steps_of(alone, kind)
    assert len(ours) == 6
    for step, other in zip(ours, expected, strict=True):
        assert step == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("zero", STAGES)
def test_a_step_moves_by_autograds_gradient(shared: Path, zero: int) -> None:
    """Of tied weights, and of a layer that is used twice; each process has several rows."""
    start, moved = before(Case("", twice=True)), weights_of(shared, f"gradient-{zero}")
    for name, gradient in autograd(groups(), tied=True, twice=True).items():
        found = (start[name] - moved[name]).flatten().numpy()
        assert abs(found - gradient).max() < 1e-5 * max(1, abs(gradient).max()), name


@pytest.mark.parametrize("zero", STAGES)
def test_a_step_that_is_not_finite_is_passed_over_alike(alone: Path, shared: Path, zero: int) -> None:
    said = [line["message"] for line in lines_of(shared, f"nan-{zero}") if line["type"] == "message"]
    assert said == [line["message"] for line in lines_of(alone, "nan") if line["type"] == "message"]
    assert sum("passed over" in message for message in said) == 2


@pytest.mark.parametrize("zero", STAGES)
def test_in_16_bits_the_trained_values_stay_float32(alone: Path, shared: Path, zero: int) -> None:
    """Steps of 1e-6 would be lost on weights of 16 bits, whose last bit is worth a thousand times as much."""
    ours, expected, start = weights_of(shared, f"narrow-{zero}"), weights_of(alone, "narrow"), before(Case("narrow"))
    moved, other = (torch.cat([(w[name] - start[name]).flatten() for name in start]) for w in (ours, expected))
    assert all(weight.dtype == torch.float32 for weight in ours.values())
    assert float((moved != 0).float().mean()) > 0.9
    assert float(torch.nn.functional.cosine_similarity(moved, other, dim=0)) > 0.99


RESUMED = [(2, 3, 1, 0), (2, 1, 2, 3), (2, 3, 2, 2), (1, 0, 2, 3), (2, 2, 3, 3), (2, 3, 3, 1)]
"""By how many processes it was saved, in which stage of ZeRO; and by how many it is gone on with, in which."""


@pytest.fixture(scope="module")
def resumed(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resumed")
    write_cases(root, [Case("stopped-0", stop=2)])
    run(Case("stopped-0", stop=2), root)
    for size in (1, 2, 3):
        cases = []
        for number, (_, saved, to, zero) in enumerate(RESUMED):
            if to == size:
                source = (shared if saved else root) / f"stopped-{saved}"
                shutil.copytree(source / "work", root / f"from-{number}" / "work")
                cases.append(Case(f"resumed-{number}", zero, resumes=f"from-{number}"))
        write_cases(root, cases)
        if size == 1:
            run_all(root)
        else:
            launch(root, size)
    return root


@pytest.mark.parametrize("number", range(len(RESUMED)), ids=[str(row) for row in RESUMED])
def test_what_some_processes_saved_any_number_goes_on_from(alone: Path, resumed: Path, number: int) -> None:
    name = f"resumed-{number}"
    assert any("Resumed behind step 2" in line.get("message", "") for line in lines_of(resumed, name))
    assert furthest(weights_of(resumed, name), weights_of(alone, "rows")) < 1e-5


def test_every_dense_stage_of_a_job_shares_out_its_weights(tmp_path: Path) -> None:
    one, two = (ranked(material(tmp_path / str(size)), size, "shared") for size in (1, 2))
    for stage, weights in one.items():
        assert max(abs(values - two[stage][name]).max() for name, values in weights.items()) < 1e-5, stage


def test_a_killed_process_costs_an_attempt_and_no_data(tmp_path: Path) -> None:
    """The memory that it is given asks for ZeRO 3."""
    inputs = {"model": save_tiny(tmp_path / "model"), "examples": write_problems(tmp_path / "data")}
    settings = {"learning_rate": 1e-3, "n_epochs": 20, "batch_size": 4, "checkpoint_seconds": 0.01}
    settings |= {"devices": 2, "memory_gb": 1e-6}
    whole, cut = (write_task(tmp_path / name, "sft", settings, inputs) for name in ("whole", "cut"))
    status, lines = finish(start("sft", whole))
    assert status == 0, lines[-1]
    assert [line["data"] for line in lines if "zero" in line.get("data", {})] == [{"zero": 3}], "the least that fits"
    process = start("sft", cut)
    (other,) = begun(process, 20)
    other.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    status, lines = finish(start("sft", cut))
    assert (status, lines[-1]["type"]) == (0, "result")
    assert any("Resumed" in line.get("message", "") for line in lines)
    ours, expected = (load_file(tmp_path / name / "out/checkpoint/model.safetensors") for name in ("cut", "whole"))
    assert furthest(ours, expected) < 1e-6


def test_memory_that_is_full_in_mid_row_ends_the_attempt_and_the_next_has_shorter_rows(tmp_path: Path) -> None:
    """The other rank waits for what this one was to send: the two cannot begin the step anew."""

    def attempt() -> list[int]:
        command = [sys.executable, "-m", "tests.scale.short", str(tmp_path)]
        processes = [
            subprocess.Popen([*command, str(rank), "2", "2"], env=environment, stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        said.extend(process.communicate(timeout=PATIENCE)[1] for process in processes)
        (tmp_path / "meeting").unlink(missing_ok=True)
        return [process.returncode for process in processes]

    environment, said = {**os.environ, "OMP_NUM_THREADS": "1"}, list[str]()
    assert attempt() == [1, 1]
    assert "another attempt goes on from the last checkpoint with micro_batch_tokens = 32" in said[1]
    told = (tmp_path / "told.1").read_text()
    assert '"micro_batch_tokens": 32' in told
    assert '"steps"' not in told
    assert attempt() == [0, 0]
    assert '"steps": 2' in (tmp_path / "told.0").read_text()
    kept = [json.loads((tmp_path / "work" / str(rank) / "rows.json").read_text())["tokens"] for rank in range(2)]
    assert min(kept) == 32
