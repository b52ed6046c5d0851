"""The rewriter: a model of its own, and corrections that a teacher wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from allo_engine.data.prompts import Encoder
from allo_engine.data.records import NegativeGroup, ScoredGroup
from allo_engine.data.rewriting import Rewriting
from allo_engine.pipeline import Data, plan
from allo_engine.report import Report
from tests.teacher import teacher
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.engine.pipeline import run_job

WORDS = ("red", "blue", "green")
STAGES: dict[str, Any] = {
    "locate": {"importance": "gradient"},
    "reward_model": {"learning_rate": 1e-3, "model": "small"},
    "forget": {"learning_rate": 1e-3},
    "improve": {"learning_rate": 1e-3},
}


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    folder = tmp_path / "preferences"
    folder.mkdir()
    lines = [
        {"prompt": [{"role": "user", "content": f"say {word}"}], "chosen": word, "rejected": "no", "solution": word}
        for word in WORDS
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Narrower, with more rows in its embedding, without a chat template, and ended by another token."""
    torch.manual_seed(1)
    config = LlamaConfig(**{**tiny_model().config.to_dict(), "hidden_size": 16, "vocab_size": 270})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.eos_token = "<|begin|>"
    tokenizer.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def test_a_rewriter_of_its_own_learns_and_judges_with_the_ids_of_the_policy(
    tmp_path: Path, model_folder: Path, small: Path, preferences: Path, report: Report
) -> None:
    given = {"model": model_folder, "rewriter": small, "training_file": preferences, "validation_file": preferences}
    root, data = tmp_path / "job", Data("preferences", validation="preferences")
    metrics = run_job(root, "allo", data, given, STAGES, report)
    assert metrics["reward_model"]["examples"] == len(WORDS)
    rewriter = AutoModelForCausalLM.from_pretrained(root / "reward_model" / "checkpoint")
    assert rewriter.config.hidden_size == 16
    encoder = Encoder.of(model_folder)
    scored = ScoredGroup.read(root / "token_rewards" / "scores" / "scores.jsonl")
    for word, found in zip(WORDS, scored, strict=True):
        response = encoder.response("no")
        assert found.responses == [response]
        asked = Rewriting(encoder).scoring(0, NegativeGroup(f"say {word}", word, [], [response], []))
        ids = [*asked.prompt, *asked.responses[0]]
        logits = rewriter(torch.tensor([ids])).logits[0, -len(response) - 1 : -1].softmax(-1)
        expected = logits.gather(1, torch.tensor(response)[:, None])[:, 0]
        assert torch.allclose(expected, torch.tensor(found.probabilities[0]), atol=1e-5)


def test_the_pipeline_gives_the_rewriter_its_model_and_the_policys_tokenizer() -> None:
    own = {
        stage.name: stage.inputs
        for stage in plan("allo", Data("problems"), {"sft": {}, "reward_model": {"model": "x"}})
    }
    assert own["reward_model"] == {"model": "rewriter", "policy": "model", "negatives": "pair.negatives"}
    plain = {stage.name: stage.inputs for stage in plan("allo", Data("problems"), {"sft": {}})}
    assert plain["reward_model"] == {"model": "sft.checkpoint", "negatives": "pair.negatives"}


def test_a_teachers_corrections_are_what_the_rewriter_learns(
    tmp_path: Path, model_folder: Path, preferences: Path, report: Report
) -> None:
    given = {"model": model_folder, "training_file": preferences, "validation_file": preferences}
    data = Data("preferences", validation="preferences")
    with teacher(lambda *_: (200, "a longer correction")) as server:
        stages = {**STAGES, "reward_model": {"corrections": {"base_url": server.url, "model": "t"}}}
        metrics = run_job(tmp_path / "job", "allo", data, given, stages, report)["reward_model"]
        assert len(server.questions) == len(WORDS)
    assert (metrics["teacher_asked"], metrics["teacher_answered"], metrics["teacher_unusable"]) == (3, 3, 0)
    plain = run_job(tmp_path / "plain", "allo", data, given, {**STAGES, "reward_model": {}}, report)["reward_model"]
    assert metrics["trained_tokens"] > plain["trained_tokens"]
