"""The best checkpoint and an early stop: chosen by what is not trained on, and the same however a run is cut."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from allo_engine.config import SftConfig, WarmupConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import supervised_examples
from allo_engine.model.loading import load_model
from allo_engine.model.logps import score
from allo_engine.model.sequences import Group, singles
from allo_engine.pipeline import Data, PlanError, plan
from allo_engine.report import Report, StageError, Stopped
from allo_engine.stages import sft, warmup
from allo_engine.training.objectives import CrossEntropy
from allo_engine.training.resuming import OptimizerState
from allo_engine.training.validation import Validation, held_out, parted
from tests.unit.engine.conftest import Lines

WILD: dict[str, Any] = {"learning_rate": 2e-2, "batch_size": 2, "n_epochs": 8, "schedule": "constant"}
"""Under which what is held out soon gets worse."""

HELD: dict[str, Any] = {"validation_share": 0.4, "evaluate_every": 0.5}


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("problems")
    words = ["apple", "river", "stone", "cloud", "tiger", "paper", "grass", "music", "light", "house"]
    lines = [{"problem": f"{n} + {n}", "solution": word} for n, word in enumerate(words)]  # there is nothing to learn
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


class Watching(Report):
    """A report that is asked to stop behind a step."""

    def __init__(self, step: int | None = None) -> None:
        self.stream = Lines()
        super().__init__(self.stream)
        self._step = step

    def progress(self, step: int, total: int, metrics: Any = None) -> None:
        super().progress(step, total, metrics)
        self.stop_requested |= bool(metrics) and "loss" in metrics and metrics["step"] == self._step

    def told(self, name: str) -> dict[int, float]:
        """A figure by its step."""
        found = [line["metrics"] for line in self.stream.lines() if line["type"] == "progress"]
        return {int(figures["step"]): figures[name] for figures in found if name in figures}


def tuned(root: Path, model: Path, problems: Path, report: Report, **settings: Any) -> dict[str, float]:
    config = SftConfig(**{**WILD, **HELD, **settings})
    return sft.run(config, {"model": model, "examples": problems}, root, root.with_suffix(".work"), report)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    return all(np.array_equal(values, weights(other)[name]) for name, values in weights(one).items())


def groups_of(problems: Path, model: Path) -> list[Group]:
    examples = supervised_examples(problems, Encoder.of(model, SftConfig()))
    return [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=20), st.floats(0, 0.99))
def test_a_prompts_side_depends_on_nothing_else(prompts: list[list[int]], share: float) -> None:
    groups = [singles(key, prompt, [[1]]) for key, prompt in enumerate(prompts)]
    training, held = parted(groups, share)
    assert sorted(group.key for group in (*training, *held)) == list(range(len(groups)))
    for group in groups:
        assert any(map(bool, parted([group], share)[1])) == (group in held)


@pytest.mark.parametrize("train", ["all", "mask"])
def test_the_result_is_the_step_with_the_least_loss_on_what_is_held_out(
    tmp_path: Path, model_folder: Path, problems: Path, train: str
) -> None:
    report = Watching()
    metrics = tuned(tmp_path / "out", model_folder, problems, report, train=train, mask_ratio=0.3)
    told = report.told("validation_loss")
    steps = int(metrics["steps"])
    assert list(told)[-1] == steps == max(report.told("learning_rate"))
    best = min(told, key=lambda step: told[step])
    assert (metrics["result_step"], metrics["best_step"]) == (best, best)
    assert best < steps, "the settings are so wild that the last step is not the best"
    assert metrics["best_validation_loss"] == told[best] < told[steps]
    _, held = held_out(groups_of(problems, model_folder), SftConfig(**HELD))
    logps = torch.cat(list(score(load_model(tmp_path / "out" / "checkpoint"), held, 512, lambda _: None).values()))
    assert -float(logps.mean()) == pytest.approx(told[best], abs=1e-5)
    assert f"behind step {best} of {steps}" in report.stream.getvalue()


def test_the_last_step_may_be_kept_all_the_same(tmp_path: Path, model_folder: Path, problems: Path) -> None:
    metrics = tuned(tmp_path / "last", model_folder, problems, Watching(), keep="last")
    assert metrics["best_step"] < metrics["result_step"] == metrics["steps"]


def validation(root: Path, weight: torch.nn.Parameter, losses: Iterator[float], report: Report) -> Validation:
    """Of one token that is held out, whose loss behind each of four steps is what is given."""
    scored = lambda: {(0, 0): torch.tensor([-next(losses)])}  # noqa: E731
    state = OptimizerState({"weight": weight}, torch.optim.AdamW([weight]))
    config = SftConfig(validation_share=0.5, n_epochs=4, evaluate_every=1)
    return Validation([singles(0, [1], [[2]])], CrossEntropy(), scored, config, 4, state, root, report)


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path, report: Report) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    found = validation(tmp_path, weight, iter([math.nan, 2.0, math.inf, 3.0]), report)
    taken = []
    for step in range(1, 5):
        weight.data.fill_(step)
        taken.append(found.take(step))
    assert taken == [({}, False), ({"validation_loss": 2.0}, True), ({}, False), ({"validation_loss": 3.0}, False)]
    assert found.settle(4) == {"result_step": 2, "best_step": 2, "best_validation_loss": 2.0}
    assert weight.item() == 2
    without = validation(tmp_path / "without", weight, iter([math.nan]), report)
    without.take(4)
    assert without.settle(4) == {"result_step": 4}


def test_where_no_step_is_better_the_result_is_the_model_that_it_started_from(
    tmp_path: Path, report: Report, stream: Lines
) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    found = validation(tmp_path, weight, iter([1.0, 2.0, 3.0]), report)
    for step in (0, 1, 4):
        assert found.due(step)
        weight.data.fill_(step)
        found.take(step)
    assert found.settle(4) == {"result_step": 0, "best_step": 0, "best_validation_loss": 1.0}
    assert weight.item() == 0
    assert "the model that training started from" in stream.getvalue()


@pytest.mark.parametrize("train", ["all", "mask"])
def test_a_rate_that_ruins_every_step_leaves_the_start_model(
    tmp_path: Path, model_folder: Path, problems: Path, train: str
) -> None:
    settings: dict[str, Any] = {"train": train, "mask_ratio": 0.3}
    tuned(tmp_path / "good", model_folder, problems, Watching(), **settings, keep="last")
    good, report = tmp_path / "good" / "checkpoint", Watching()
    metrics = tuned(tmp_path / "out", good, problems, report, **settings | {"learning_rate": 1.0})
    assert (metrics["result_step"], metrics["best_step"]) == (0, 0)
    assert metrics["best_validation_loss"] == report.told("validation_loss")[0]
    assert same(tmp_path / "out", tmp_path / "good")


def test_where_the_best_is_damaged_the_last_is_the_result(tmp_path: Path, report: Report, stream: Lines) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    found = validation(tmp_path, weight, iter([1.0, 2.0]), report)
    found.take(1)
    weight.data.fill_(4)
    found.take(4)
    (kept,) = (tmp_path / "best").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert found.settle(4)["result_step"] == 4
    assert weight.item() == 4
    assert "is damaged" in stream.getvalue()


def test_patience_ends_a_training_that_gets_worse(tmp_path: Path, model_folder: Path, problems: Path) -> None:
    report, whole = Watching(), Watching()
    metrics = tuned(tmp_path / "out", model_folder, problems, report, patience=2)
    full = tuned(tmp_path / "whole", model_folder, problems, whole)
    told = whole.told("validation_loss")
    taken = list(report.told("validation_loss"))
    assert report.told("validation_loss") == {step: told[step] for step in taken}
    assert metrics["steps"] == taken[-1] < full["steps"]
    assert taken[-3] == metrics["best_step"] == metrics["result_step"]
    assert metrics["trained_tokens"] < full["trained_tokens"]
    assert "Stopped behind step" in report.stream.getvalue()


@pytest.mark.parametrize(("train", "step"), [("mask", 1), ("mask", 3), ("mask", 5), ("all", 6)])
def test_a_run_that_was_cut_has_the_same_best(
    tmp_path: Path, model_folder: Path, problems: Path, train: str, step: int
) -> None:
    settings: dict[str, Any] = {"train": train, "mask_ratio": 0.3, "patience": 3}
    whole = tuned(tmp_path / "whole", model_folder, problems, Watching(), **settings)
    with pytest.raises(Stopped):
        tuned(tmp_path / "cut", model_folder, problems, Watching(step), **settings)
    again = Watching()
    assert tuned(tmp_path / "cut", model_folder, problems, again, **settings) == whole
    assert f"Resumed behind step {step}." in again.stream.getvalue()
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_a_stop_is_heard_in_the_midst_of_a_validation_which_is_then_taken_anew(
    tmp_path: Path, model_folder: Path, problems: Path
) -> None:
    whole, report = tuned(tmp_path / "whole", model_folder, problems, Watching()), Watching()
    config = SftConfig(**WILD, **HELD)

    class Stopping(Watching):
        """Asked to stop at the first row of what is held out: by then the step has been told."""

        def progress(self, step: int, total: int, metrics: Any = None) -> None:
            super().progress(step, total, metrics)
            if metrics and metrics["step"] == 2 and "loss" in metrics:
                self.late = True

        @property
        def stop_requested(self) -> bool:
            self.asked = getattr(self, "asked", 0) + getattr(self, "late", False)
            return self.asked > 1  # first the loop looks, behind the step; then the validation

        @stop_requested.setter
        def stop_requested(self, _: bool) -> None: ...

    inputs = {"model": model_folder, "examples": problems}
    with pytest.raises(Stopped):
        sft.run(config, inputs, tmp_path / "cut", tmp_path / "cut.work", Stopping())
    assert tuned(tmp_path / "cut", model_folder, problems, report) == whole
    assert 2 in report.told("validation_loss")
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_pairs_are_validated_against_the_start_model(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "pairs").mkdir()
    lines = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no"} for n in range(10)]
    (tmp_path / "pairs" / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = Watching()
    config = WarmupConfig(learning_rate=1e-3, batch_size=2, n_epochs=2, **HELD)
    inputs = {"model": model_folder, "pairs": tmp_path / "pairs"}
    metrics = warmup.run(config, inputs, tmp_path / "out", tmp_path / "work", report)
    progress = [line["step"] / line["total"] for line in report.stream.lines() if line["type"] == "progress"]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert report.told("validation_reward_accuracy").keys() == report.told("validation_loss").keys()
    assert metrics["best_validation_loss"] < np.log(2)
    assert metrics["pairs"] < 10


def test_a_share_that_leaves_a_side_empty_is_refused_in_words(
    tmp_path: Path, model_folder: Path, problems: Path
) -> None:
    with pytest.raises(StageError, match=r"0\.001 leaves 10 problems to train on and 0 to validate on"):
        tuned(tmp_path / "out", model_folder, problems, Watching(), validation_share=0.001)


def test_trl_holds_nothing_out() -> None:
    with pytest.raises(PlanError, match="leave validation_share out"):
        plan("supervised", Data("chats"), {"sft": {"trainer": "trl", "validation_share": 0.1}})
