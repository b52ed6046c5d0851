"""The mean of the last checkpoints, and the scale of what was learned: both chosen on what is held out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allo_engine.checkpoints.delta import read_delta
from allo_engine.config import ImproveConfig, LocateConfig, SftConfig
from allo_engine.model.sequences import singles
from allo_engine.report import Report, Stopped
from allo_engine.stages import improve, locate
from allo_engine.training.averaging import Averaging, points
from allo_engine.training.objectives import CrossEntropy
from allo_engine.training.resuming import OptimizerState
from allo_engine.training.validation import Validation
from tests.unit.engine.training.test_validation import Watching, problems, same, tuned, weights

__all__ = ["problems"]

MEAN: dict[str, Any] = {"average": 3, "evaluate_every": 0.25, "n_epochs": 2, "train": "mask", "mask_ratio": 0.3}


def averaging(root: Path, weight: torch.nn.Parameter, report: Report, **settings: Any) -> Averaging:
    """Of one weight over five steps, each of which is a checkpoint."""
    config = SftConfig(**{"n_epochs": 5, "evaluate_every": 1, "average": 3, **settings})
    state = OptimizerState({"weight": weight}, torch.optim.AdamW([weight]))
    return Averaging(config, 5, state, root, report)


def walked(found: Averaging, weight: torch.nn.Parameter, steps: range) -> None:
    """Behind step s the weight is 2^s."""
    for step in steps:
        weight.data.fill_(2**step)
        if found.due(step):
            found.take(step)


def test_the_mean_is_of_the_last_three(tmp_path: Path, report: Report) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    found = averaging(tmp_path, weight, report)
    walked(found, weight, range(1, 6))
    assert len(list((tmp_path / "last").iterdir())) == 3
    assert found.settle(5) == 3
    assert torch.equal(weight, torch.full((2,), (8 + 16 + 32) / 3))


def test_where_patience_may_end_it_the_last_three_are_those_before_its_end(tmp_path: Path, report: Report) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    found = averaging(tmp_path, weight, report, patience=1)
    walked(found, weight, range(1, 5))
    assert found.settle(4) == 3
    assert weight.item() == pytest.approx((4 + 8 + 16) / 3)


@pytest.mark.parametrize("average", [2, 3, 5])
@pytest.mark.parametrize("patience", [None, 9])
def test_wherever_it_is_killed_and_resumed_the_mean_is_the_same(
    tmp_path: Path, report: Report, average: int, patience: int | None
) -> None:
    """Killed behind one step, it goes on from that or an earlier one, over what the killed run left."""
    weight = torch.nn.Parameter(torch.zeros(1))
    for resumed, killed in combinations_with_replacement(range(6), 2):
        for steps in (range(1, killed + 1), range(resumed + 1, 6)):
            found = averaging(tmp_path / f"{killed}.{resumed}", weight, report, average=average, patience=patience)
            walked(found, weight, steps)
        assert found.settle(5) == average
        assert weight.item() == pytest.approx(sum(2**step for step in range(6 - average, 6)) / average)


def test_one_that_is_damaged_is_passed_over(tmp_path: Path, report: Report) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    found = averaging(tmp_path, weight, report)
    walked(found, weight, range(1, 6))
    first = min((tmp_path / "last").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    assert found.settle(5) == 2
    assert weight.item() == (16 + 32) / 2


@pytest.mark.parametrize(
    ("of_the_mean", "keep", "value", "averaged"),
    [(0.5, "best", 10, True), (2.0, "best", 2, False), (2.0, "last", 10, True), (math.nan, "best", 2, False)],
)
def test_the_mean_is_the_result_where_it_is_better_than_the_best(
    tmp_path: Path, report: Report, of_the_mean: float, keep: str, value: float, averaged: bool
) -> None:
    """The losses behind steps 1 and 2 are 1 and 3; the weight is 2 behind the first, and 10 as the mean."""
    losses: Iterator[float] = iter([1.0, 3.0, of_the_mean])
    weight = torch.nn.Parameter(torch.full((1,), 2.0))
    state = OptimizerState({"weight": weight}, torch.optim.AdamW([weight]))
    config = SftConfig(validation_share=0.5, n_epochs=2, evaluate_every=1, average=2, keep=keep)  # type: ignore[arg-type]
    scored = lambda: {(0, 0): torch.tensor([-next(losses)])}  # noqa: E731
    held = [singles(0, [1], [[2]])]
    found = Validation(held, CrossEntropy(), scored, config, 2, state, tmp_path, report)
    for step in (1, 2):
        found.take(step)
    weight.data.fill_(10)
    told = found.settle(2, averaged=2)
    assert weight.item() == value
    assert told.get("averaged") == (2 if averaged else None)
    assert told["result_step"] == (2 if averaged else 1)
    assert told.get("average_validation_loss") == (None if math.isnan(of_the_mean) else of_the_mean)


def test_a_stage_leaves_the_mean_and_after_a_cut_the_same_bits(
    tmp_path: Path, model_folder: Path, problems: Path
) -> None:
    settings = {**MEAN, "train": "all", "validation_share": 0.0}
    metrics = tuned(tmp_path / "whole", model_folder, problems, Watching(), **settings)
    steps = points(SftConfig(**{**settings, "batch_size": 2}), int(metrics["steps"]))[-3:]
    files = sorted((tmp_path / "whole.work" / "last").iterdir())
    assert [int(path.stem.split("-")[1]) for path in files] == steps
    kept = [load_file(path) for path in files]
    for name, value in weights(tmp_path / "whole").items():
        mean = sum(one[f"values/{name}"].double() for one in kept) / 3
        assert np.array_equal(value, mean.float().numpy())
    with pytest.raises(Stopped):
        tuned(tmp_path / "cut", model_folder, problems, Watching(steps[1]), **settings)
    assert tuned(tmp_path / "cut", model_folder, problems, Watching(), **settings) == metrics
    assert same(tmp_path / "cut", tmp_path / "whole")
    assert metrics["averaged"] == 3


def test_the_mean_in_a_mask_is_validated_as_the_model_that_it_is(
    tmp_path: Path, model_folder: Path, problems: Path
) -> None:
    settings = {**MEAN, "validation_share": 0.4, "keep": "last"}
    metrics = tuned(tmp_path / "whole", model_folder, problems, Watching(), **settings)
    with pytest.raises(Stopped):
        tuned(tmp_path / "cut", model_folder, problems, Watching(5), **settings)
    assert tuned(tmp_path / "cut", model_folder, problems, Watching(), **settings) == metrics
    assert same(tmp_path / "cut", tmp_path / "whole")
    assert metrics["averaged"] == 3
    assert metrics["average_validation_loss"] != metrics["best_validation_loss"]


# --- scales


@pytest.fixture
def pairs(tmp_path: Path, model_folder: Path, report: Report) -> dict[str, Path]:
    """The inputs of `improve`, whose mask is random."""
    (tmp_path / "pairs").mkdir()
    lines = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(10)]
    (tmp_path / "pairs" / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = {"model": model_folder, "pairs": tmp_path / "pairs"}
    chosen = LocateConfig(importance="random", improve_ratio=0.3)
    locate.run(chosen, {"model": model_folder}, tmp_path / "locate", tmp_path / "locate.work", report)
    return {**given, "masks": tmp_path / "locate" / "masks"}


def test_the_scale_is_the_one_with_the_least_loss_on_what_is_held_out(
    tmp_path: Path, model_folder: Path, pairs: dict[str, Path], report: Report
) -> None:
    """With scale 0 the model is the reference: −logσ(0) = log 2. With scale 1 it is the one that was validated."""
    settings: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 2, "validation_share": 0.4}

    def run(name: str, **more: Any) -> dict[str, float]:
        return improve.run(ImproveConfig(**settings, **more), pairs, tmp_path / name, tmp_path / f"{name}.work", report)

    metrics = run("tried", scales=(0.0, 1.0, 2.0))
    losses = {scale: metrics[f"validation_loss_at_{scale}"] for scale in (0, 1, 2)}
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[1] == pytest.approx(metrics["best_validation_loss"], abs=1e-6)
    assert metrics["scale"] == min(losses, key=lambda scale: losses[scale]) > 0
    run("given", scale=metrics["scale"])
    ours, theirs = (read_delta(tmp_path / name / "delta", model_folder) for name in ("tried", "given"))
    assert all(np.array_equal(ours[name][1], theirs[name][1]) for name in ours.keys() | theirs.keys())
