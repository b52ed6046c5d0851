"""TRL as the trainer: the result of the engine's own loop where both have the loss, and the same manners as a stage."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from allo_engine.config import PairLoss, SftConfig, WarmupConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import supervised_examples
from allo_engine.estimate.counting import padded_passes
from allo_engine.model.sequences import singles
from allo_engine.pipeline import Data, PlanError, plan
from allo_engine.report import Report, Stopped
from allo_engine.stages import sft, warmup
from allo_engine.training.resuming import step_of
from allo_engine.training.trl_plan import parts, passes_of
from tests.unit.engine.conftest import Lines
from tests.unit.engine.training.trl_ranked import (
    SLOWLY,
    Case,
    Watching,
    launch,
    run,
    write_material,
    write_preferences,
    write_solved,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own are not ours to mend


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_preferences(tmp_path_factory.mktemp("preferences"), 10)


@pytest.fixture(scope="session")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_solved(tmp_path_factory.mktemp("problems"), 10)


Weights = dict[str, np.ndarray]


def weights(folder: Path) -> Weights:
    return load_file(folder / "checkpoint" / "model.safetensors")


def furthest(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def steps(stream: Lines) -> list[dict[str, float]]:
    """Their figures, but for the machine's own."""
    told = [line["metrics"] for line in stream.lines() if line["type"] == "progress" and "loss" in line["metrics"]]
    machines = ("memory_bytes", "tokens_per_second", "device_use")
    return [{name: step[name] for name in step if name not in machines} for step in told]


def steps_in(file: Path) -> list[dict[str, float]]:
    return steps(Lines(file.read_text()))


def warm(config: WarmupConfig, model: Path, data: Path, out: Path, report: Report | None = None) -> dict[str, float]:
    work = out.with_suffix(".work")
    return warmup.run(config, {"model": model, "pairs": data}, out, work, report or Report(Lines()))


def tuned(config: SftConfig, model: Path, data: Path, out: Path, report: Report | None = None) -> dict[str, float]:
    work = out.with_suffix(".work")
    return sft.run(config, {"model": model, "examples": data}, out, work, report or Report(Lines()))


def test_both_trainers_take_the_same_steps_of_dpo(tmp_path: Path, model_folder: Path, preferences: Path) -> None:
    """Six steps over two epochs, the last of each short: the same losses, margins and rates, and the same weights."""
    told: dict[str, list[dict[str, float]]] = {}
    metrics = {}
    for trainer in ("allo", "trl"):
        stream, config = Lines(), WarmupConfig(trainer=trainer, **SLOWLY, weight_decay=0.01, micro_batch_tokens=200)
        metrics[trainer] = warm(config, model_folder, preferences, tmp_path / trainer, Report(stream))
        told[trainer] = steps(stream)
    assert [len(found) for found in told.values()] == [6, 6]
    assert told["trl"][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for ours, theirs in zip(told["allo"], told["trl"], strict=True):
        for name in ("loss", "reward_margin", "learning_rate", "step", "steps"):
            assert theirs[name] == pytest.approx(ours[name], abs=1e-5), name
        assert theirs["gradient_norm"] == pytest.approx(ours["gradient_norm"], rel=1e-4)
    start = load_file(model_folder / "model.safetensors")
    moved = furthest(start, weights(tmp_path / "allo"))
    assert furthest(weights(tmp_path / "allo"), weights(tmp_path / "trl")) < 1e-4 * moved
    for name in ("pairs", "steps", "trained_weights"):
        assert metrics["allo"][name] == metrics["trl"][name]
    assert metrics["trl"]["loss"] == pytest.approx(metrics["allo"]["loss"], abs=1e-5)


def test_both_trainers_weigh_the_chosen_responses_likelihood(
    tmp_path: Path, model_folder: Path, preferences: Path
) -> None:
    """A pair a step: there the two means over tokens are one."""
    told: dict[str, list[dict[str, float]]] = {}
    for trainer in ("allo", "trl"):
        stream, config = Lines(), WarmupConfig(trainer=trainer, **SLOWLY | {"batch_size": 1, "n_epochs": 1}, nll=0.5)
        warm(config, model_folder, preferences, tmp_path / trainer, Report(stream))
        told[trainer] = steps(stream)
    first = told["allo"][0]
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * first["chosen_nll"], abs=1e-5)
    for ours, theirs in zip(told["allo"], told["trl"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)
    moved = furthest(load_file(model_folder / "model.safetensors"), weights(tmp_path / "allo"))
    assert furthest(weights(tmp_path / "allo"), weights(tmp_path / "trl")) < 1e-3 * moved


def test_both_trainers_take_the_same_steps_of_sft(tmp_path: Path, model_folder: Path, problems: Path) -> None:
    told, metrics = {}, {}
    for trainer in ("allo", "trl"):
        stream, config = Lines(), SftConfig(trainer=trainer, **SLOWLY, micro_batch_tokens=100)
        metrics[trainer] = tuned(config, model_folder, problems, tmp_path / trainer, Report(stream))
        told[trainer] = steps(stream)
    for ours, theirs in zip(told["allo"], told["trl"], strict=True):
        for name in ("loss", "learning_rate", "step", "steps"):
            assert theirs[name] == pytest.approx(ours[name], abs=1e-5), name
    moved = furthest(load_file(model_folder / "model.safetensors"), weights(tmp_path / "allo"))
    assert furthest(weights(tmp_path / "allo"), weights(tmp_path / "trl")) < 1e-4 * moved
    assert metrics["trl"]["loss"] == pytest.approx(metrics["allo"]["loss"], abs=1e-5)


@pytest.mark.parametrize("loss", get_args(PairLoss))
def test_every_loss_of_dpo_trainer_runs(tmp_path: Path, model_folder: Path, preferences: Path, loss: str) -> None:
    stream = Lines()
    smoothing = {"label_smoothing": 0.1} if loss in ("robust", "exo_pair") else {}
    config = WarmupConfig(trainer="trl", loss=loss, learning_rate=1e-3, batch_size=5, **smoothing)
    warm(config, model_folder, preferences, tmp_path / "out", Report(stream))
    told = steps(stream)
    assert [figures["step"] for figures in told] == [1, 2]
    assert all(math.isfinite(figures["loss"]) and figures["gradient_norm"] > 0 for figures in told)
    assert furthest(load_file(model_folder / "model.safetensors"), weights(tmp_path / "out")) > 0


def test_the_losses_are_those_that_dpo_trainer_names() -> None:
    from trl import DPOConfig

    told = next(field.metadata["help"] for field in fields(DPOConfig) if field.name == "loss_type")
    assert tuple(re.findall(r"`'(\w+)'`", told)) == get_args(PairLoss)


def test_a_place_among_several_that_stands_in_the_environment_is_not_meant_for_trl(
    tmp_path: Path, model_folder: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert tuned(SftConfig(trainer="trl", n_epochs=1), model_folder, problems, tmp_path / "out")["steps"] == 1


@pytest.mark.parametrize("step", [4])
def test_a_run_that_was_stopped_ends_in_the_same_bits(
    tmp_path: Path, model_folder: Path, preferences: Path, step: int
) -> None:
    config = WarmupConfig(trainer="trl", **SLOWLY, micro_batch_tokens=200)
    whole = warm(config, model_folder, preferences, tmp_path / "whole")
    with pytest.raises(Stopped):
        warm(config, model_folder, preferences, tmp_path / "cut", Watching(step))
    again = Watching()
    resumed = warm(config, model_folder, preferences, tmp_path / "cut", again)
    assert f"Resumed behind step {step}." in [line.get("message") for line in again.stream.lines()]
    assert [figures["step"] for figures in steps(again.stream)] == list(range(step + 1, 7))
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    assert resumed == whole
    progress = [(line["step"], line["total"]) for line in again.stream.lines() if line["type"] == "progress"]
    assert progress[-1][0] == progress[-1][1]
    assert progress == sorted(progress)


class WatchedConfig(LlamaConfig):
    model_type = "watched-llama"


class WatchedBody(LlamaModel):
    """A body that tells a test of each pass that trains, before it."""

    watcher: ClassVar[Callable[[int], None]]

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        if torch.is_grad_enabled():  # a probe of the architecture is no such pass
            type(self).watcher(input_ids.numel())
        return super().forward(input_ids=input_ids, **more)


class WatchedModel(LlamaForCausalLM):
    config_class = WatchedConfig

    def __init__(self, config: WatchedConfig) -> None:
        super().__init__(config)
        self.model.__class__ = WatchedBody


@pytest.fixture(scope="session")
def watched_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as one that is watched."""
    AutoConfig.register(WatchedConfig.model_type, WatchedConfig)
    AutoModelForCausalLM.register(WatchedConfig, WatchedModel)
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("watched") / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": WatchedConfig.model_type}))
    return folder


def test_a_stop_does_not_wait_for_the_rest_of_a_batch(tmp_path: Path, watched_folder: Path, problems: Path) -> None:
    config = SftConfig(trainer="trl", learning_rate=1e-3, batch_size=5, n_epochs=1, micro_batch_tokens=1)
    report, passes = Watching(), 0

    def watch(_: int) -> None:
        nonlocal passes
        passes += 1
        report.stop_requested = passes == 7  # the second of the second step's five

    WatchedBody.watcher = watch
    with pytest.raises(Stopped):
        tuned(config, watched_folder, problems, tmp_path / "cut", report)
    assert passes == 7
    again = Watching()
    tuned(config, watched_folder, problems, tmp_path / "cut", again)
    assert "Resumed behind step 1." in [line.get("message") for line in again.stream.lines()]
    assert passes == 12
    tuned(config, watched_folder, problems, tmp_path / "whole")
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0


def test_an_estimate_counts_the_passes_that_are_done(tmp_path: Path, watched_folder: Path, problems: Path) -> None:
    config, passes = SftConfig(trainer="trl", batch_size=4, n_epochs=1, micro_batch_tokens=60), []
    WatchedBody.watcher = passes.append
    tuned(config, watched_folder, problems, tmp_path / "out")
    examples = supervised_examples(problems, Encoder.of(watched_folder, config))
    groups = [singles(key, prompt, [response]) for key, (prompt, response) in enumerate(examples)]
    expected, steps = padded_passes(groups, config, 60, "cpu")
    assert (expected.tokens, expected.rows, expected.longest) == (sum(passes), len(passes), max(passes))
    assert steps == 3


def test_where_memory_is_short_it_goes_on_with_smaller_micro_batches(
    tmp_path: Path, watched_folder: Path, problems: Path
) -> None:
    config = SftConfig(trainer="trl", **SLOWLY, checkpoint_seconds=1e-9, micro_batch_tokens=400)
    passes: list[int] = []
    WatchedBody.watcher = passes.append
    tuned(config, watched_folder, problems, tmp_path / "large")
    largest = max(passes)

    def small(tokens: int) -> None:
        passes.append(tokens)
        if tokens > largest // 2 and len(passes) > 1:  # not so at the first step
            raise torch.OutOfMemoryError("out of memory")

    passes.clear()
    WatchedBody.watcher, report = small, Watching()
    tuned(config, watched_folder, problems, tmp_path / "small", report)
    messages = [line["message"] for line in report.stream.lines() if line["type"] == "message"]
    assert any(found.startswith("The device's memory was full") for found in messages)
    assert "Resumed behind step 1." in messages
    assert [figures["step"] for figures in steps(report.stream)] == [1, 2, 3, 4, 5, 6]
    assert max(passes[-8:]) <= largest // 2
    moved = furthest(load_file(watched_folder / "model.safetensors"), weights(tmp_path / "large"))
    assert furthest(weights(tmp_path / "large"), weights(tmp_path / "small")) < 1e-4 * moved


def test_checkpoints_are_kept_two_at_a_time_and_one_that_is_not_whole_is_passed_over(
    tmp_path: Path, model_folder: Path, preferences: Path
) -> None:
    config = WarmupConfig(trainer="trl", **SLOWLY, checkpoint_seconds=1e-9)
    warm(config, model_folder, preferences, tmp_path / "whole")
    with pytest.raises(Stopped):
        warm(config, model_folder, preferences, tmp_path / "cut", Watching(4))
    older, newer = sorted((tmp_path / "cut.work" / "trl").glob("step-*.safetensors"))
    assert step_of(older) < step_of(newer) == 4
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    again = Watching()
    warm(config, model_folder, preferences, tmp_path / "cut", again)
    messages = [line.get("message") for line in again.stream.lines()]
    assert f"Checkpoint {newer.name} is damaged and was passed over." in messages
    assert f"Resumed behind step {step_of(older)}." in messages
    assert furthest(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0


def test_a_batch_takes_as_few_passes_as_fit() -> None:
    assert passes_of(32, ranks=1, padded=100, tokens=10_000) == 1
    assert passes_of(32, ranks=1, padded=100, tokens=1_599) == 3
    assert passes_of(32, ranks=3, padded=100, tokens=1_599) == 1
    assert passes_of(32, ranks=2, padded=100, tokens=10) == 16


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 5))
def test_parts_hold_every_item_once_and_are_alike(items: int, passes: int, ranks: int) -> None:
    found = parts(range(items), passes, ranks)
    assert [len(ranks_of) for ranks_of in found] == [ranks] * passes
    assert [item for ranks_of in found for part in ranks_of for item in part] == list(range(items))
    sizes = {len(part) for ranks_of in found for part in ranks_of}
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings in one process and in two, which share out nothing; and one that two began and one ends."""
    root = write_material(tmp_path_factory.mktemp("ranked"))
    cases = [
        Case("pairs", "warmup", {"micro_batch_tokens": 200}),
        Case("ipo", "warmup", {"loss": "ipo", "weight_decay": 0.01}),
        Case("examples", "sft", {"micro_batch_tokens": 60}),
    ]
    others = [Case("begun", "warmup", stop=4), Case("diverges", "sft", {"learning_rate": 1e9})]
    launch(root, 2, [*(replace(case, name=f"{case.name}-2") for case in cases), *others])
    for case in (*cases, Case("ended", "warmup", resumes="begun")):
        run(case, root)
    return root


@pytest.mark.parametrize("name", ["pairs", "ipo", "examples"])
def test_two_processes_end_in_the_weights_of_one(ranked: Path, name: str) -> None:
    """The last batch of an epoch has one item, so that one process has none."""
    one, two = (weights(ranked / case / "0") for case in (name, f"{name}-2"))
    assert furthest(one, two) < 1e-5
    assert furthest(one, load_file(ranked / "model" / "model.safetensors")) > 1e-3
    told, others = (steps_in(ranked / case / "lines.jsonl") for case in (name, f"{name}-2"))
    assert len(told) == 6
    for step, other in zip(told, others, strict=True):
        assert step == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_processes_agree_on_a_stop_and_on_what_is_not_finite(ranked: Path) -> None:
    """One of them is asked to stop."""
    assert json.loads((ranked / "begun" / "endings.json").read_text()) == ["stopped"] * 2
    assert json.loads((ranked / "diverges" / "endings.json").read_text()) == ["diverged"] * 2


def test_what_two_processes_saved_one_goes_on_from(ranked: Path) -> None:
    assert [step["step"] for step in steps_in(ranked / "begun" / "lines.jsonl")] == [1, 2, 3, 4]
    assert [step["step"] for step in steps_in(ranked / "ended" / "lines.jsonl")] == [5, 6]
    assert furthest(weights(ranked / "pairs" / "0"), weights(ranked / "ended" / "0")) < 1e-5


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"loss": "ipo"}, "loss"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"trainer": "trl", "loss": "exo_pair"}, "loss"),
        ({"trainer": "trl", "train": "mask"}, "trainer"),
        ({"trainer": "trl", "loss": "simpo"}, "loss"),
    ],
)
def test_what_no_trainer_has_is_refused_before_it_runs(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(PlanError) as refused:
        plan("dpo", Data("preferences"), {"warmup": settings})
    assert refused.value.param == f"method.dpo.stages.warmup.{field}"
    assert refused.value.message.startswith(f"Stage warmup: {field} ")


@pytest.mark.parametrize("devices", ["auto", 2])
def test_what_trl_trains_takes_the_devices_that_are_set(devices: str | int) -> None:
    (stage,) = plan("supervised", Data("chats"), {"sft": {"trainer": "trl", "devices": devices}})
    assert stage.config.model_dump()["devices"] == devices
