"""Locating from checkpoint to mask: exact on scales a thousand apart, and its controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from allo_engine.config import LocateConfig
from allo_engine.report import Report, StageError
from allo_engine.selection import count_of, positions
from allo_engine.stages import locate

SIZES = {"a": (40, 30), "b": (7,), "c": (25, 80)}
TOTAL = 1200 + 7 + 2000


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Path]:
    random = np.random.default_rng(0)
    before = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in SIZES.items()}
    scales = {"a": 1e-6, "b": 1e-3, "c": 1.0}
    after = {name: t + scales[name] * random.standard_normal(t.shape, dtype=np.float32) for name, t in before.items()}
    for folder, tensors in (("model", before), ("updated", after)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    return {"model": tmp_path / "model", "updated": tmp_path / "updated"}


def chosen(checkpoints: dict[str, Path], folder: Path, report: Report, **settings: Any) -> dict[str, set[int]]:
    locate.run(LocateConfig(**settings), checkpoints, folder, folder, report)
    bits = load_file(folder / "masks" / "improve.safetensors")
    return {name: set(positions(bits[name], int(np.prod(shape))).tolist()) for name, shape in SIZES.items()}


def updates(checkpoints: dict[str, Path]) -> dict[str, np.ndarray]:
    before, after = (load_file(folder / "model.safetensors") for folder in checkpoints.values())
    return {name: np.abs(after[name] - before[name]).ravel() for name in SIZES}


@pytest.mark.parametrize("ratio", [0.001, 0.05, 1 / 3, 0.77, 1.0])
@pytest.mark.parametrize("importance", ["update", "least", "random"])
def test_every_importance_selects_exactly_its_share_and_the_same_each_time(
    checkpoints: dict[str, Path], tmp_path: Path, report: Report, importance: str, ratio: float
) -> None:
    first = chosen(checkpoints, tmp_path / "1", report, importance=importance, improve_ratio=ratio, seed=3)
    assert sum(map(len, first.values())) == count_of(ratio, TOTAL)
    assert first == chosen(checkpoints, tmp_path / "2", report, importance=importance, improve_ratio=ratio, seed=3)


def test_least_and_most_are_the_two_ends_of_one_order(
    checkpoints: dict[str, Path], tmp_path: Path, report: Report
) -> None:
    least = chosen(checkpoints, tmp_path / "least", report, importance="least", improve_ratio=0.3)
    moved = updates(checkpoints)
    inside = max(moved[name][sorted(places)].max() for name, places in least.items() if places)
    outside = min(np.delete(moved[name], sorted(places)).min(initial=np.inf) for name, places in least.items())
    assert inside <= outside


def test_random_takes_every_tensor_by_its_size_and_follows_the_seed(
    checkpoints: dict[str, Path], tmp_path: Path, report: Report
) -> None:
    one = chosen(checkpoints, tmp_path / "1", report, importance="random", improve_ratio=0.5, seed=1)
    two = chosen(checkpoints, tmp_path / "2", report, importance="random", improve_ratio=0.5, seed=2)
    assert one != two
    assert 0.4 < len(one["a"]) / 1200 < 0.6


def test_the_report_says_where_the_mask_lies(checkpoints: dict[str, Path], tmp_path: Path, report: Report) -> None:
    mask = chosen(checkpoints, tmp_path / "out", report)
    where = json.loads((tmp_path / "out" / "masks" / "where.json").read_text())
    assert {name: row["improve"] for name, row in where.items()} == {name: len(places) for name, places in mask.items()}


def test_a_warm_up_that_diverged_is_told(checkpoints: dict[str, Path], tmp_path: Path, report: Report) -> None:
    tensors = load_file(checkpoints["updated"] / "model.safetensors")
    tensors["b"][3] = np.nan
    save_file(tensors, checkpoints["updated"] / "model.safetensors")
    with pytest.raises(StageError, match="learning_rate"):
        chosen(checkpoints, tmp_path / "out", report)
