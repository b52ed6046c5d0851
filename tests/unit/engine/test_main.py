"""A stage as its own process: the protocol, and a stop that loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.processes import Program
from tests.waiting import PATIENCE


def write_task(folder: Path, stage: str, config: dict[str, Any], inputs: dict[str, Path]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    task = {"stage": stage, "config": config, "inputs": {name: str(path) for name, path in inputs.items()}}
    task |= {"outputs": str(folder / "out"), "work": str(folder / "work")}
    (folder / "stage.json").write_text(json.dumps(task))
    return folder / "stage.json"


def start(stage: str, config: Path, alone: bool = True) -> Program:
    return Program([stage, "--config", str(config)], config.with_name("errors"), alone)


def executed(stage: str, config: Path) -> subprocess.Popen[str]:
    """As a program of its own, which loads the engine first."""
    command = [sys.executable, "-m", "allo_engine", stage, "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: Program | subprocess.Popen[str]) -> tuple[int | None, list[dict[str, Any]]]:
    output, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, [json.loads(line) for line in output.splitlines()] or [{"type": errors}]


SFT = {"learning_rate": 1e-3, "n_epochs": 60, "batch_size": 2, "checkpoint_seconds": 0.01}


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_problems(tmp_path_factory.mktemp("problems") / "data")


@pytest.fixture(scope="module")
def whole(model_folder: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a stage leaves that nobody ended."""
    root = tmp_path_factory.mktemp("whole")
    status, lines = finish(start("sft", write_task(root, "sft", SFT, {"model": model_folder, "examples": problems})))
    assert (status, lines[-1]["type"]) == (0, "result")
    return root


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_that_was_ended_goes_on_to_the_same_bits(
    tmp_path: Path, model_folder: Path, problems: Path, whole: Path, ending: int
) -> None:
    cut = write_task(tmp_path / "cut", "sft", SFT, {"model": model_folder, "examples": problems})
    process = start("sft", cut)
    for line in process.stdout:
        if json.loads(line).get("metrics", {}).get("step", 0) >= 30:
            process.send_signal(ending)
            break
    process.communicate(timeout=PATIENCE)
    assert process.returncode == (75 if ending == signal.SIGTERM else -signal.SIGKILL)
    status, lines = finish(start("sft", cut))
    assert status == 0
    assert any("Resumed" in line.get("message", "") for line in lines)
    ours = load_file(tmp_path / "cut" / "out" / "checkpoint" / "model.safetensors")
    expected = load_file(whole / "out" / "checkpoint" / "model.safetensors")
    assert all(np.array_equal(ours[name], expected[name]) for name in expected)


def test_sampling_that_was_ended_goes_on_to_the_same_responses(tmp_path: Path, model_folder: Path) -> None:
    config = {"n": 2, "decoding_batch": 1, "max_response_tokens": 300, "temperature": 1.5}  # rounding too is the same
    inputs = {"model": model_folder, "problems": write_problems(tmp_path / "data")}
    whole, cut = (write_task(tmp_path / name, "sample", config, inputs) for name in ("whole", "cut"))
    assert finish(start("sample", whole))[0] == 0
    process = start("sample", cut)
    for line in process.stdout:
        if json.loads(line).get("step", 0) >= 1:
            process.kill()
            break
    process.communicate(timeout=PATIENCE)
    assert len((tmp_path / "cut" / "work" / "responses.jsonl").read_text().splitlines()) >= 1
    assert finish(start("sample", cut))[0] == 0
    name = "out/responses/responses.jsonl"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_stage_that_cannot_go_on_says_what_to_change(tmp_path: Path, model_folder: Path) -> None:
    inputs = {"model": model_folder, "examples": write_problems(tmp_path / "data")}
    config = write_task(tmp_path / "job", "sft", {"template": "no place for it"}, inputs)
    status, lines = finish(executed("sft", config))
    assert status == 1
    assert lines[-1] == {
        "type": "error",
        "code": "bad_template",
        "message": "The template must hold {problem}, where the problem's text goes.",
    }


def test_a_stage_that_was_planned_for_other_code_does_not_run(tmp_path: Path, model_folder: Path) -> None:
    config = write_task(tmp_path / "job", "sft", {}, {"model": model_folder})
    config.write_text(json.dumps({**json.loads(config.read_text()), "code": "0" * 64}))
    status, lines = finish(start("sft", config))
    assert (status, lines[-1]["code"]) == (1, "other_code")
    assert not (tmp_path / "job" / "out").exists()


def test_settings_that_are_wrong_are_told_by_field(tmp_path: Path, model_folder: Path) -> None:
    config = write_task(tmp_path / "job", "sft", {"learning_rate": -1}, {"model": model_folder})
    status, lines = finish(executed("sft", config))
    assert status == 2
    assert "learning_rate" in lines[-1]["message"]


def test_what_is_loaded_ahead_starts_no_thread_and_asks_for_no_device() -> None:
    look = "import os, sys, allo_engine.__main__ as engine; engine.preload(); import torch\n"
    look += "assert 'transformers' in sys.modules and not torch.cuda.is_initialized()\n"
    look += "assert len(os.listdir('/proc/self/task')) == 1, 'a fork would lose the other threads'\n"
    look += "pid = os.fork()\nif pid == 0: os._exit(0 if engine.forked_well() else 1)\n"
    look += "assert os.waitpid(pid, 0)[1] == 0"
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # numpy's own threads know how to fork
    subprocess.run([sys.executable, "-c", look], check=True, env=alone)
