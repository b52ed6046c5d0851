"""Stages that share their work over ranks: what they leave is what one process leaves, whatever becomes of a rank."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from allo_engine.config import LocateConfig
from allo_engine.data.records import NegativeGroup, write_lines
from allo_engine.masking.selection import PIECE
from allo_engine.model.loading import load_model
from allo_engine.report import Report
from allo_engine.stages import locate, sample
from tests.tiny import save_tiny
from tests.unit.engine.conftest import Lines
from tests.unit.engine.masking.test_gradients import by_plain_autograd
from tests.unit.engine.pipeline import write_problems
from tests.unit.engine.processes import as_ranks
from tests.unit.engine.shared import run, run_all
from tests.unit.engine.stages.test_locate import save
from tests.unit.engine.test_main import finish, start, write_task
from tests.unit.engine.test_ranks import other_ranks
from tests.waiting import PATIENCE

GREEDY: dict[str, Any] = {"max_response_tokens": 24, "decoding_batch": 1}
"""One response at a time: so rounding, too, is the same."""

DRAWING: dict[str, Any] = {**GREEDY, "temperature": 1.0}
SCORING: dict[str, Any] = {"micro_batch_tokens": 64}
"""Rows enough for several ranks."""

EXACT = ["update", "least", "scores", "log_ratio", "sample", "on_problems", "on_pairs", "on_chats"]


def write(folder: Path, lines: list[dict[str, Any]]) -> str:
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def two_large_checkpoints(root: Path) -> dict[str, str]:
    """More than one piece of a tensor, several tensors, and so many equal updates that ties are cut among ranks."""
    random = torch.Generator().manual_seed(0)
    shapes = {"a": (PIECE + 1000,), "b": (300, 40), "c": (2 * PIECE + 8,), "d": (7,)}
    before = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    steps = {name: torch.randint(0, 4, shape, generator=random) / 1024 for name, shape in shapes.items()}
    save({name: (tensor * 1024).round() / 1024 + steps[name] for name, tensor in before.items()}, root / "after")
    save({name: (tensor * 1024).round() / 1024 for name, tensor in before.items()}, root / "before")
    return {"model": str(root / "before"), "updated": str(root / "after")}


def negatives(folder: Path) -> str:
    ids = [[10 + key, 20, 30 + key] for key in range(9)]
    groups = [
        NegativeGroup(f"problem {key}", f"solution {key}", [0, *one], [[*one, 7, 1], [40, *one, 1]], [[*one, 8, 1]] * 2)
        for key, one in enumerate(ids)
    ]
    write_lines(folder / "negatives.jsonl", groups)
    return str(folder)


def tasks(root: Path) -> list[dict[str, Any]]:
    model, other = str(save_tiny(root / "model")), str(save_tiny(root / "other", seed=1))
    problems = str(write_problems(root / "problems"))
    pairs = [{"prompt": f"say {n}", "chosen": f"it is {n}", "rejected": "no " * (n % 3 + 1)} for n in range(12)]
    preferences = write(root / "preferences", pairs)
    turns = [
        [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}"}] for n in range(9)
    ]
    chats = write(root / "chats", [{"messages": messages} for messages in turns])
    checkpoints, ratios = two_large_checkpoints(root), {"forget_ratio": 0.1, "improve_ratio": 0.3}
    wrong = {"model": model, "negatives": negatives(root / "negatives")}
    candidates = {"base": model, "sft": other}
    return [
        {"name": name, "stage": stage, "config": config, "inputs": inputs}
        for name, stage, config, inputs in [
            ("update", "locate", ratios, checkpoints),
            ("least", "locate", {"importance": "least", **ratios}, checkpoints),
            ("gradient", "locate", {"importance": "gradient", **SCORING}, {"model": model, "pairs": preferences}),
            ("scores", "token_rewards", SCORING, {**wrong, "reward_model": other}),
            ("log_ratio", "token_rewards", {"source": "log_ratio", **SCORING}, {**wrong, "updated": other}),
            ("sample", "sample", {"n": 3, **DRAWING}, {"model": model, "problems": problems}),
            ("on_problems", "evaluate", {**GREEDY, "samples": 2}, {**candidates, "heldout": problems}),
            ("on_pairs", "evaluate", SCORING, {**candidates, "heldout": preferences}),
            ("on_chats", "evaluate", SCORING, {**candidates, "heldout": chats}),
        ]
    ]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return tasks(tmp_path_factory.mktemp("shares"))


@pytest.fixture(scope="module")
def done(given: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """All tasks done by one process, and by two, in a folder each."""
    alone, shared = (tmp_path_factory.mktemp(name) for name in ("alone", "shared"))
    run_all(given, alone)
    as_ranks(2, shared, run_all, given, shared)
    return alone, shared


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted((folder / "out").rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


@pytest.mark.parametrize("name", EXACT)
def test_ranks_leave_the_bytes_that_one_process_leaves(done: tuple[Path, Path], name: str) -> None:
    expected, found = (dict(files(folder / name)) for folder in done)
    assert len(expected) > 1
    assert found == expected


def test_by_gradient_the_masks_differ_at_most_where_rounding_decides(
    given: list[dict[str, Any]], done: tuple[Path, Path]
) -> None:
    (task,) = [task for task in given if task["name"] == "gradient"]
    inputs = {name: Path(folder) for name, folder in task["inputs"].items()}
    groups = locate.pair_groups(LocateConfig(**task["config"]), inputs, Report(Lines()))
    exact = by_plain_autograd(load_model(inputs["model"]), groups)
    alone, shared = (mask_of(folder / "gradient" / "out" / "masks" / "improve.safetensors", exact) for folder in done)
    value = torch.cat([exact[name].abs().reshape(-1) for name in sorted(exact)]).numpy()
    border = value[alone].min()
    assert alone.sum() == shared.sum()
    assert np.abs(value[alone != shared] - border).max(initial=0) < 1e-3 * border
    assert (alone != shared).mean() < 1e-3


def mask_of(path: Path, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """Whether each weight is in the mask, in the order of names."""
    bits = load_file(path)
    return np.concatenate([np.unpackbits(bits[name], count=weights[name].numel()) for name in sorted(bits)]).astype(
        bool
    )


def test_what_ranks_drew_before_one_was_killed_others_go_on_from(tmp_path: Path, model_folder: Path) -> None:
    inputs = {"model": model_folder, "problems": write_problems(tmp_path / "data")}
    config = {**DRAWING, "n": 4, "max_response_tokens": 100}
    run({"name": "whole", "stage": "sample", "config": config, "inputs": inputs}, tmp_path, Report(Lines()))
    process = start("sample", write_task(tmp_path / "cut", "sample", {**config, "devices": 3}, inputs))
    for line in process.stdout:
        if json.loads(line).get("step", 0) >= 6:
            other_ranks(process.pid)[-1].kill()
            break
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    drawn = len(kept(tmp_path / "cut" / "work"))
    assert 6 <= drawn < 32
    status, lines = finish(start("sample", write_task(tmp_path / "cut", "sample", {**config, "devices": 2}, inputs)))
    assert (status, lines[-1]["type"]) == (0, "result")
    steps = [line["step"] for line in lines if line["type"] == "progress"]
    assert (steps[0], steps[-1]) == (drawn, 32)
    assert len(kept(tmp_path / "cut" / "work")) == 32  # none was drawn twice
    name = "out/responses/responses.jsonl"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def kept(work: Path) -> list[bytes]:
    """All whole lines that any rank has written."""
    paths = [work / sample.KEPT, *work.glob(f"ranks/*/{sample.KEPT}")]
    return [line for path in paths for line in path.read_bytes().split(b"\n")[:-1]]


def test_what_is_wrong_with_one_ranks_share_is_told(tmp_path: Path) -> None:
    """The second piece, which is the second rank's, holds what is no number."""
    inputs = {name: Path(folder) for name, folder in two_large_checkpoints(tmp_path).items()}
    after = {
        name: torch.from_numpy(values) for name, values in load_file(inputs["updated"] / "model.safetensors").items()
    }
    after["a"][PIECE + 3] = torch.nan
    save(after, inputs["updated"])
    status, lines = finish(start("locate", write_task(tmp_path / "job", "locate", {"devices": 2}, inputs)))
    assert status == 1
    assert lines[-1]["code"] == "diverged"
    assert "weight a" in lines[-1]["message"]
