"""Every trained stage over all weights or in a mask, and what each leaves."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from allo_engine.config import SftConfig, WarmupConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import pairs, supervised_examples
from allo_engine.masking.selection import count_of
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.pipeline import Data
from allo_engine.report import Report, StageError, Stopped
from allo_engine.stages import sft, warmup
from tests.unit.engine.conftest import Lines
from tests.unit.engine.pipeline import aligned_folder, run_job, write_problems

RATIO = 0.03
MASKED: dict[str, Any] = {"train": "mask", "mask_ratio": RATIO, "learning_rate": 1e-2}
Weights = dict[str, np.ndarray]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return write_problems(tmp_path / "problems")


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    (tmp_path / "preferences").mkdir()
    lines = [
        {"prompt": f"say {word}", "chosen": word, "rejected": "no", "solution": word}
        for word in ("red", "blue", "green")
    ]
    (tmp_path / "preferences" / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "preferences"


def weights(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")


def changed(before: Weights, after: Weights) -> dict[str, set[int]]:
    return {name: set(np.flatnonzero(before[name].ravel() != after[name].ravel())) for name in before}


def largest(gradients: dict[str, np.ndarray], count: int) -> dict[str, set[int]]:
    """The places of the `count` largest magnitudes of all."""
    least = np.sort(np.abs(np.concatenate([found.ravel() for found in gradients.values()])))[-count]
    return {name: set(np.flatnonzero(np.abs(found.ravel()) >= least)) for name, found in gradients.items()}


def by_plain_transformers(model_folder: Path, sequences: list[tuple[list[int], list[int], float]]) -> Weights:
    """∇ of Σ sign · logπ(response) over (prompt, response, sign), a sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    for prompt, response, sign in sequences:
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        (sign * logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()).backward()
    return {name: weight.grad.numpy() for name, weight in model.named_parameters() if weight.grad is not None}


def nearly_equal(first: dict[str, set[int]], second: dict[str, set[int]]) -> bool:
    """But for a few at the threshold, whose gradients differ by rounding."""
    different = sum(len(first.get(name, set()) ^ second.get(name, set())) for name in first.keys() | second.keys())
    return different <= 0.01 * sum(map(len, second.values()))


def test_a_masked_sft_changes_the_weights_where_cross_entropy_is_steepest_and_no_other(
    tmp_path: Path, model_folder: Path, problems: Path, report: Report
) -> None:
    inputs, config = {"model": model_folder, "examples": problems}, SftConfig(**MASKED)
    metrics = sft.run(config, inputs, tmp_path / "out", tmp_path / "work", report)
    before = weights(model_folder)
    count = count_of(RATIO, sum(weight.size for weight in before.values()))
    assert metrics["trained_weights"] == count
    moved = changed(before, weights(tmp_path / "out" / "checkpoint"))
    examples = supervised_examples(problems, Encoder.of(model_folder, config))
    steepest = largest(by_plain_transformers(model_folder, [(*example, 1.0) for example in examples]), count)
    assert nearly_equal(moved, steepest)
    assert load_tokenizer(tmp_path / "out" / "checkpoint")("sky") == load_tokenizer(model_folder)("sky")


def test_a_masked_warm_up_changes_the_weights_where_dpo_is_steepest(
    tmp_path: Path, model_folder: Path, preferences: Path, report: Report
) -> None:
    inputs, config = {"model": model_folder, "pairs": preferences}, WarmupConfig(**MASKED)
    metrics = warmup.run(config, inputs, tmp_path / "out", tmp_path / "work", report)
    groups = pairs(preferences, Encoder.of(model_folder, config))
    signed = [
        (list(group.prompt), list(group.responses[index]), sign)
        for group in groups
        for chosen, rejected in group.items
        for index, sign in ((chosen, 1.0), (rejected, -1.0))
    ]
    moved = changed(weights(model_folder), weights(tmp_path / "out" / "checkpoint"))
    steepest = largest(by_plain_transformers(model_folder, signed), int(metrics["trained_weights"]))
    assert nearly_equal(moved, steepest)
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-5)  # one batch, at the start: the reference is itself


def test_a_mask_of_everything_trains_as_no_mask_does(
    tmp_path: Path, model_folder: Path, problems: Path, report: Report
) -> None:
    inputs = {"model": model_folder, "examples": problems}
    dense = SftConfig(learning_rate=1e-3, batch_size=4, max_grad_norm=1e9)  # a clipped norm's sum has another order
    for name, config in {
        "all": dense,
        "mask": dense.model_copy(update={"train": "mask", "mask_ratio": 1.0}),
    }.items():
        sft.run(config, inputs, tmp_path / name, tmp_path / "work" / name, report)
    first, second = (weights(tmp_path / name / "checkpoint") for name in ("all", "mask"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


class StopBehind(Report):
    """Asks to stop once that much work was told."""

    def __init__(self, work: int) -> None:
        super().__init__(Lines(), every_seconds=0)
        self._work = work

    def progress(self, step: int, total: int, metrics: Any = None) -> None:
        super().progress(step, total, metrics)
        self.stop_requested = self.before + step >= self._work


def told(report: Report) -> list[tuple[int, int]]:
    stream = report._stream
    assert isinstance(stream, Lines)
    return [(line["step"], line["total"]) for line in stream.lines() if line["type"] == "progress"]


def test_a_masked_stage_that_was_stopped_anywhere_goes_on_to_the_same_bits(
    tmp_path: Path, model_folder: Path, problems: Path
) -> None:
    inputs = {"model": model_folder, "examples": problems}
    config = SftConfig(**MASKED, batch_size=4, micro_batch_tokens=64, checkpoint_seconds=1e-9)
    whole = Report(Lines(), every_seconds=0)
    sft.run(config, inputs, tmp_path / "whole", tmp_path / "whole.work", whole)
    steps = told(whole)
    assert steps == sorted(steps)
    assert {total for _, total in steps} == {steps[-1][0]}
    for work in (1, steps[-1][1] // 4 + 1, steps[-1][1] // 2):  # while locating, at its end, in training
        with pytest.raises(Stopped):
            sft.run(config, inputs, tmp_path / "cut", tmp_path / "cut.work", StopBehind(work))
    sft.run(config, inputs, tmp_path / "cut", tmp_path / "cut.work", Report(Lines()))
    first, second = (weights(tmp_path / name / "checkpoint") for name in ("whole", "cut"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("forgetting", "improving"), list(product(("all", "mask"), repeat=2)))
def test_forgetting_and_improving_train_in_the_mask_or_everywhere(
    tmp_path: Path, model_folder: Path, preferences: Path, report: Report, forgetting: str, improving: str
) -> None:
    given = {"model": model_folder, "training_file": preferences, "validation_file": preferences}
    stages = {
        "locate": {"importance": "gradient", "forget_ratio": 0.02, "improve_ratio": RATIO},
        "reward_model": {"train": "mask"},
        "forget": {"train": forgetting, "learning_rate": 1e-3},
        "improve": {"train": improving, "learning_rate": 1e-3},
    }
    if (forgetting, improving) == ("all", "all"):
        del stages["locate"]
    data = Data("preferences", validation="preferences")
    metrics = run_job(tmp_path / "job", "allo", data, given, stages, report)
    assert ("locate" in metrics) == ("mask" in (forgetting, improving))
    start, aligned = weights(model_folder), weights(aligned_folder(tmp_path / "job", model_folder))
    total = sum(weight.size for weight in start.values())
    share = sum(map(len, changed(start, aligned).values())) / total
    assert (share > 0.5) == ("all" in (forgetting, improving))
    assert metrics["improve"]["trained_weights"] == (total if improving == "all" else count_of(RATIO, total))
    plain = AutoModelForCausalLM.from_pretrained(aligned_folder(tmp_path / "job", model_folder))
    assert torch.isfinite(plain(torch.tensor([[0, 5, 6]])).logits).all()


def test_one_word_makes_an_allo_job_without_a_dense_stage(
    tmp_path: Path, model_folder: Path, problems: Path, report: Report
) -> None:
    given = {"model": model_folder, "training_file": problems, "validation_file": problems}
    stages = {
        "sft": {"learning_rate": 1e-2, "n_epochs": 40, "batch_size": 4, "mask_ratio": 0.3, "share": 1},
        "sample": {"n": 8, "temperature": 1.0, "max_response_tokens": 32},
        "evaluate": {"max_response_tokens": 8},
    }
    data, shorthand = Data("problems", validation="problems"), {"train": "mask", "mask_ratio": RATIO}
    metrics = run_job(tmp_path / "job", "allo", data, given, stages, report, shorthand)
    assert "warmup" not in metrics
    total = metrics["locate"]["weights"]
    trained = {name: found["trained_weights"] for name, found in metrics.items() if "trained_weights" in found}
    shares = {"sft": 0.3, "reward_model": RATIO, "forget": RATIO, "improve": RATIO}
    assert trained == {name: count_of(ratio, int(total)) for name, ratio in shares.items()}


def test_a_gradient_that_is_no_number_is_said_so(
    tmp_path: Path, model_folder: Path, problems: Path, report: Report
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    broken = tmp_path / "broken"
    model.save_pretrained(broken)
    load_tokenizer(model_folder).save_pretrained(broken)
    with pytest.raises(StageError, match="gradient") as caught:
        sft.run(SftConfig(**MASKED), {"model": broken, "examples": problems}, tmp_path, tmp_path / "work", report)
    assert caught.value.code == "diverged"
