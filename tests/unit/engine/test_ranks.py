"""Several processes train as one: to its weights, through any death of one of them, and on from its checkpoints."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from allo_engine.ranks import Ranks, here
from tests.tiny import save_tiny
from tests.unit.engine.pipeline import aligned_folder, write_problems
from tests.unit.engine.processes import Program, as_ranks
from tests.unit.engine.ranked import run
from tests.unit.engine.shared import run_all
from tests.unit.engine.test_main import finish, start, write_task
from tests.waiting import PATIENCE, until

TRAINED = ("sft", "warmup", "reward_model", "improve")


def test_alone_an_exchange_gives_what_it_is_given() -> None:
    ranks = here()
    assert (ranks.rank, ranks.size, ranks.leads) == (0, 1, True)
    assert (ranks.any(True), ranks.least(3), ranks.gathered("a"), ranks.share([5, 4])) == (True, 3, ["a"], [5, 4])


def test_shares_are_whole_and_alike() -> None:
    items = [9, 7, 6, 5, 5, 2, 1]
    shares = [Ranks(rank, 3).share(items, float) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(sum, shares)) - min(map(sum, shares)) <= min(items)


def material(root: Path) -> Path:
    save_tiny(root / "model")
    write_problems(root / "problems")
    (root / "preferences").mkdir()
    lines = [
        {"prompt": f"say {word}", "chosen": word, "rejected": wrong, "solution": word}
        for word in ("red", "blue", "green", "grey", "brown")
        for wrong in ("no", "never at all")
    ]
    (root / "preferences" / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def ranked(root: Path, size: int, train: str) -> dict[str, dict[str, np.ndarray]]:
    """The weights that each trained stage leaves."""
    as_ranks(size, root, run, root, train)
    folders = {stage: root / stage / "checkpoint" for stage in TRAINED} | {
        "improve": aligned_folder(root, root / "model")
    }
    return {stage: load_file(folder / "model.safetensors") for stage, folder in folders.items()}


@pytest.mark.parametrize("train", ["all", "mask"])
def test_two_processes_end_in_the_weights_of_one(tmp_path: Path, train: str) -> None:
    one, two = (ranked(material(tmp_path / str(size)), size, train) for size in (1, 2))
    for stage, weights in one.items():
        for name, values in weights.items():
            assert np.abs(values - two[stage][name]).max() < 1e-5, (stage, name)
    started = load_file(tmp_path / "1" / "model" / "model.safetensors")
    for stage, weights in one.items():
        assert any(np.abs(values - started[name]).max() > 1e-4 for name, values in weights.items()), stage


SFT: dict[str, Any] = {"learning_rate": 1e-3, "n_epochs": 40, "batch_size": 4, "checkpoint_seconds": 0.01}


def begun(process: Program, step: int) -> list[psutil.Process]:
    """The other ranks, once the training is behind that step."""
    for line in process.stdout:
        if json.loads(line).get("metrics", {}).get("step", 0) >= step:
            break
    return other_ranks(process.pid)


def other_ranks(first: int) -> list[psutil.Process]:
    """The ranks that the first one started."""
    return [child for child in psutil.Process(first).children() if child.name().startswith("rank ")]


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "out" / "checkpoint" / "model.safetensors")


def test_what_ends_one_rank_ends_all_and_as_many_fewer_or_more_go_on_from_there(
    tmp_path: Path, model_folder: Path
) -> None:
    """Ranks are forked from the first, and executed where that is not alone."""
    inputs = {"model": model_folder, "examples": write_problems(tmp_path / "data")}
    as_ranks(2, tmp_path, run_all, [{"name": "whole", "stage": "sft", "config": SFT, "inputs": inputs}], tmp_path)
    whole, cut = weights_of(tmp_path / "whole"), write_task(tmp_path / "cut", "sft", {**SFT, "devices": 2}, inputs)
    for step, end in ((10, "a rank is killed"), (20, "the first is killed"), (30, "all are asked to stop")):
        alone = end != "a rank is killed"
        process = start("sft", cut, alone)
        (other,) = begun(process, step)
        assert other.cmdline() == psutil.Process(process.pid).cmdline() if alone else "--rank=1" in other.cmdline()
        if end == "a rank is killed":
            other.kill()
        else:
            process.send_signal(signal.SIGTERM if end == "all are asked to stop" else signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        expected = {"a rank is killed": 1, "the first is killed": -signal.SIGKILL, "all are asked to stop": 75}
        assert process.returncode == expected[end]
        until(lambda: not other.is_running() or other.status() == psutil.STATUS_ZOMBIE)  # noqa: B023 - asked at once
    shutil.copytree(tmp_path / "cut", tmp_path / "others")

    status, lines = finish(start("sft", cut))
    assert status == 0, lines[-1]
    assert any("Resumed" in line.get("message", "") for line in lines)
    ours = weights_of(tmp_path / "cut")
    assert all(np.array_equal(ours[name], weights) for name, weights in whole.items()), "two end in the same bits"

    process = start("sft", write_task(tmp_path / "others", "sft", {**SFT, "devices": 3}, inputs))
    begun(process, 40)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    alone = write_task(tmp_path / "others", "sft", {**SFT, "devices": 1}, inputs)
    status, lines = finish(start("sft", alone))
    assert status == 0, lines[-1]
    (resumed,) = [line["data"]["step"] for line in lines if "Resumed" in line.get("message", "")]
    assert resumed >= 40
    ours = weights_of(tmp_path / "others")
    assert max(np.abs(ours[name] - weights).max() for name, weights in whole.items()) < 1e-4


def test_an_error_of_the_data_is_told_once_and_in_words(tmp_path: Path, model_folder: Path) -> None:
    inputs = {"model": model_folder, "examples": write_problems(tmp_path / "data")}
    settings = {"template": "no place for it", "devices": 2}
    status, lines = finish(start("sft", write_task(tmp_path / "job", "sft", settings, inputs)))
    assert (status, lines[-1]["code"]) == (1, "bad_template")
