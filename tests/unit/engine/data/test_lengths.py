"""What does not fit a model's context is dropped and told, whatever the architecture calls its length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from allo_engine.checkpoints.folder import context_length
from allo_engine.pipeline import Data
from allo_engine.report import Report
from tests.tiny import tiny_tokenizer
from tests.unit.engine.conftest import Lines
from tests.unit.engine.pipeline import run_job


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 8}, 8),
        ({"n_positions": 9}, 9),
        ({"max_seq_len": 10}, 10),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 11}}, 11),
        ({"max_position_embeddings": None, "text_config": None}, 2**31),
    ],
)
def test_a_model_says_its_length_under_one_of_several_names(tmp_path: Path, config: Any, length: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(tmp_path) == length


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=261, n_positions=160, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_rewriting_sequences_are_fitted_to_the_context(
    gpt2: Path, tmp_path: Path, report: Report, stream: Lines
) -> None:
    (tmp_path / "data").mkdir()
    lines = [
        {"prompt": "say red", "chosen": "red", "rejected": "no", "solution": "red"},
        {"prompt": "say blue", "chosen": "blue", "rejected": "no", "solution": "blue " * 30},  # fits, but not rewritten
    ]
    (tmp_path / "data" / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"model": gpt2, "training_file": tmp_path / "data"}
    metrics = run_job(tmp_path / "job", "allo", Data("preferences"), given, {}, report)
    assert metrics["reward_model"]["examples"] == metrics["token_rewards"]["responses"] == 1
    assert metrics["improve"]["pairs"] == 2
    told = [line["message"] for line in stream.lines() if "too long" in line.get("message", "")]
    assert told == ["1 of 2 examples are too long and were dropped."] * 2
