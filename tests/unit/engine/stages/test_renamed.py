"""The way from pairs to an aligned model where transformers calls weights otherwise than the checkpoint does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from allo_engine.checkpoints.delta import apply_delta, read_delta
from allo_engine.masking.selection import count_of, positions
from allo_engine.pipeline import Data
from allo_engine.report import Report
from tests.unit.engine.pipeline import aligned_folder, run_job
from tests.unit.engine.renamed import RENAMED, save_renamed

STAGES = {
    "warmup": {"learning_rate": 1e-3},
    "locate": {"forget_ratio": 0.03, "improve_ratio": 0.1},
    "token_rewards": {"source": "log_ratio"},
    "forget": {"learning_rate": 1e-3, "weights": "one_minus"},
    "improve": {"learning_rate": 1e-2},
}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    lines = [{"prompt": f"say {word}", "chosen": word, "rejected": "no"} for word in ("red", "blue", "green")]
    (tmp_path / "data" / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data"


@pytest.mark.parametrize("importance", ["update", "gradient"])
@pytest.mark.parametrize("kind", RENAMED)
def test_a_model_is_aligned_in_the_names_of_its_checkpoint(
    tmp_path: Path, pairs: Path, kind: str, importance: str, report: Report
) -> None:
    base = save_renamed(kind, tmp_path / "base", torch.bfloat16)
    stages = STAGES | {"locate": {**STAGES["locate"], "importance": importance}}
    given = {"model": base, "training_file": pairs, "validation_file": pairs}
    metrics = run_job(tmp_path, "allo", Data("preferences", validation="preferences"), given, stages, report)
    assert list(metrics) == ["warmup", "locate", "token_rewards", "forget", "improve", "evaluate"]

    stored = load_file(base / "model.safetensors")
    trained = {name: weight for name, weight in stored.items() if "vision" not in name and "projector" not in name}
    masks = load_file(tmp_path / "locate" / "masks" / "improve.safetensors")
    masked = {name: positions(bits.numpy(), stored[name].numel()) for name, bits in masks.items()}
    assert masked.keys() == trained.keys()
    assert sum(map(len, masked.values())) == count_of(0.1, sum(weight.numel() for weight in trained.values()))

    aligned = load_file(aligned_folder(tmp_path, base) / "model.safetensors")
    delta = read_delta(tmp_path / "improve" / "delta", base)
    assert aligned.keys() == stored.keys()
    moved = 0
    for name, weight in stored.items():
        changed = np.flatnonzero((aligned[name] != weight.float()).reshape(-1).numpy())
        assert set(changed) <= set(masked.get(name, []))
        moved += len(changed)
        if name in delta:
            assert np.array_equal(aligned[name].reshape(-1).numpy()[delta[name][0]], delta[name][1])
    assert moved > 100

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    apply_delta(model, tmp_path / "improve" / "delta", base)
    merged = AutoModelForCausalLM.from_pretrained(aligned_folder(tmp_path, base)).state_dict()
    assert all(torch.equal(weight, merged[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", RENAMED)
def test_what_all_weights_became_is_told_in_the_names_of_the_checkpoint(
    tmp_path: Path, pairs: Path, kind: str, report: Report
) -> None:
    """A stage in a mask of its own, and stages over all weights behind it."""
    base = save_renamed(kind, tmp_path / "base", torch.bfloat16)
    everywhere = {name: {**STAGES[name], "train": "all"} for name in ("forget", "improve")}
    scored = {"token_rewards": STAGES["token_rewards"]}  # without `locate`, which nothing here reads
    stages = {"warmup": {**STAGES["warmup"], "train": "mask"}} | scored | everywhere
    given = {"model": base, "training_file": pairs}
    run_job(tmp_path, "allo", Data("preferences"), given, stages, report)
    delta = read_delta(tmp_path / "improve" / "delta", base)
    stored = load_file(base / "model.safetensors")
    assert delta.keys() <= stored.keys()
    assert not any("vision" in name or "projector" in name for name in delta)
    assert sum(len(places) for places, _ in delta.values()) > 1000
    updated = load_file(tmp_path / "warmup" / "checkpoint" / "model.safetensors")
    assert updated.keys() == stored.keys()
    moved = sum(int((updated[name] != stored[name].float()).sum()) for name in stored)
    assert 0 < moved < 0.1 * sum(weight.numel() for weight in stored.values())
