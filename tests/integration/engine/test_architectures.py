"""The whole pipeline on tiny random models of every architecture, held against plain transformers, pair by pair.

`python -m tests.integration.engine.test_architectures` prints the table of what is trained how.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from allo_engine.config import WarmupConfig
from allo_engine.data.prompts import Encoder
from allo_engine.data.reading import pairs
from allo_engine.model.loading import load_model, recompute_activations
from allo_engine.model.logps import token_logps
from allo_engine.model.probe import probe
from allo_engine.model.sequences import Group, build_row
from allo_engine.pipeline import Data
from allo_engine.report import Report
from allo_engine.sampling import Request, Settings, TransformersSampler
from allo_engine.training.exam import answering
from tests.architectures import ARCHITECTURES, PACKED, save_random
from tests.pages import ROOT
from tests.unit.engine.conftest import Lines
from tests.unit.engine.pipeline import aligned_folder, run_job

PAIRS = [
    ("say red", "it is red", "a green thing"),
    ("say blue", "it is blue", "it is grey"),
    ("say", "red or blue", "no"),
]
COMMON: dict[str, Any] = {"micro_batch_tokens": 96}
FAST: dict[str, Any] = {"learning_rate": 3e-3, "warmup_ratio": 0.0, "schedule": "constant"}


def write_pairs(folder: Path) -> Path:
    folder.mkdir()
    lines = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "solution": chosen}
        for prompt, chosen, rejected in PAIRS
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_chats(folder: Path) -> Path:
    folder.mkdir()
    chats = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": chosen}]}
        for prompt, chosen, _ in PAIRS
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder


def plain(name: str, folder: Path) -> PreTrainedModel:
    """As transformers loads it; where ours takes its place, with the attention that knows soft caps and sinks.

    (That attention of Falcon counts ALiBi twice, so what is not packed is left as it is by default.)
    """
    own = {"attn_implementation": "eager"} if name in PACKED else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **own)
    return model.float().eval()


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """logπ of a response's tokens, by a forward pass of its sequence and nothing else."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def margins(name: str, aligned: Path, start: Path, groups: Sequence[Group], beta: float = 0.1) -> list[float]:
    """β(Σd_chosen − Σd_rejected) of every pair, unpacked, of two folders that anybody may download."""
    policy, reference = plain(name, aligned), plain(name, start)

    def ratio(group: Group, index: int) -> float:
        response = group.responses[index]
        return float((alone(policy, group.prompt, response) - alone(reference, group.prompt, response)).sum())

    return [
        beta * (ratio(group, chosen) - ratio(group, rejected)) for group in groups for chosen, rejected in group.items
    ]


def tune(root: Path, base: Path, report: Report) -> Path:
    """The model that sft leaves."""
    settings = {**COMMON, **FAST, "precision": "float32", "learning_rate": 1e-3, "n_epochs": 2}
    given = {"model": base, "training_file": write_chats(root / "chats")}
    run_job(root / "tuning", "supervised", Data("chats"), given, {"sft": settings}, report)
    return root / "tuning/sft/checkpoint"


def align(root: Path, start: Path, precision: str, report: Report) -> dict[str, dict[str, float]]:
    """warmup … evaluate on the very pairs; every stage's metrics."""
    data = write_pairs(root / "data")
    common = {**COMMON, "precision": precision}
    fast = {**common, **FAST}
    stages = {
        "warmup": fast,
        "locate": {"forget_ratio": 0.1, "improve_ratio": 0.2, "precision": precision},
        "reward_model": {**fast, "n_epochs": 1},
        "token_rewards": common,
        "forget": fast,
        "improve": {**fast, "n_epochs": 2},
        "evaluate": common,
    }
    given = {"model": start, "training_file": data, "validation_file": data}
    return run_job(root / "job", "allo", Data("preferences", validation="preferences"), given, stages, report)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_job_reports_is_what_plain_transformers_computes(
    name: str, tmp_path: Path, report: Report, stream: Lines
) -> None:
    start = tune(tmp_path, save_random(name, tmp_path / "base"), report)
    metrics = align(tmp_path, start, "float32", report)
    groups = pairs(tmp_path / "data", Encoder.of(start, WarmupConfig()))

    row, model = build_row(groups), load_model(start)
    assert (model.config._attn_implementation == "forest") == (name in PACKED)
    unpacked = plain(name, start)
    with torch.no_grad():
        parts = row.split(token_logps(model, row))
    for (place, index), logps in parts.items():
        expected = alone(unpacked, groups[place].prompt, groups[place].responses[index])
        assert torch.allclose(logps, expected, atol=1e-4)

    found = margins(name, aligned_folder(tmp_path / "job", start), start, groups)
    assert max(map(abs, found)) > 0.01, "training moved the model"
    assert metrics["evaluate"]["improve_margin"] == pytest.approx(sum(found) / len(found), abs=1e-4)
    assert metrics["evaluate"]["improve_accuracy"] == sum(margin > 0 for margin in found) / len(found)
    warmed = margins(name, tmp_path / "job/warmup/checkpoint", start, groups)
    assert metrics["evaluate"]["warmup_margin"] == pytest.approx(sum(warmed) / len(warmed), abs=1e-4)
    assert_a_model_against_itself_is_no_better(metrics)
    assert first_loss(stream) == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_bfloat16_a_job_runs_and_a_model_against_itself_is_no_better(
    name: str, tmp_path: Path, report: Report, stream: Lines
) -> None:
    """Of the objectives, the reward model's is sft's."""
    metrics = align(tmp_path, save_random(name, tmp_path / "base"), "bfloat16", report)
    assert all(math.isfinite(value) for found in metrics.values() for value in found.values())
    assert_a_model_against_itself_is_no_better(metrics)
    assert first_loss(stream) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_that_answers_in_the_midst_of_its_training_answers_as_any_and_has_the_gradients_that_it_had(
    name: str, tmp_path: Path
) -> None:
    """Also where activations are computed twice, for which transformers has layers in training mode."""
    folder = save_random(name, tmp_path / "base")
    encoder, model = Encoder.of(folder), load_model(folder)
    group = pairs(write_pairs(tmp_path / "data"), encoder)[0]
    asked = [Request(number, encoder.prompt(prompt), 0, 6) for number, (prompt, *_) in enumerate(PAIRS)]

    def gradients() -> list[Tensor]:
        model.zero_grad()
        token_logps(model, build_row([group])).sum().backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    before = gradients()
    recompute_activations(model)
    for _ in range(2):
        with answering(model):
            found = {
                one.number: one.response.ids for one in TransformersSampler(model).sample(asked, Settings(encoder.ends))
            }
    sampler = TransformersSampler(load_model(folder))
    assert found == {one.number: one.response.ids for one in sampler.sample(asked, Settings(encoder.ends))}
    assert all(map(torch.equal, gradients(), before))


def test_the_readme_lists_these_by_their_rows() -> None:
    listed = dict(
        re.findall(r"^\| (packed|one sequence a row)[^|]*\| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    )
    of_gemma = "Gemma 3 (text, multimodal)"
    packed = listed["packed"].replace(of_gemma, "Gemma 3 (text), Gemma 3 (multimodal)").split(", ")
    assert sorted(packed) == sorted(PACKED)
    assert sorted(listed["one sequence a row"].split(", ")) == sorted(ARCHITECTURES.keys() - PACKED.keys())


def assert_a_model_against_itself_is_no_better(metrics: dict[str, dict[str, float]]) -> None:
    assert metrics["evaluate"]["base_margin"] == 0
    assert metrics["evaluate"]["base_accuracy"] == 0.5


def first_loss(stream: Lines) -> float:
    """The warm-up's loss before its first step: ln 2 where policy and reference are one."""
    losses = [line["metrics"]["loss"] for line in stream.lines() if "reward_margin" in line.get("metrics", {})]
    return float(losses[0])


def table() -> str:
    """Architecture by architecture: packed rows or one sequence a row, and why."""
    lines = ["| architecture | rows | |", "|---|---|---|"]
    for name in ARCHITECTURES:
        with TemporaryDirectory() as folder:
            found = probe(save_random(name, Path(folder)))
        lines.append(f"| {name} | {'packed' if found.packs else 'one sequence a row'} | {found.reason} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
