"""Which models fit which devices, by formula, from config.json alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from allo_engine.estimate.fit import TRAINED, Fit, fits, main, shape_by_config
from allo_engine.model.shape import shape_of
from tests.tiny import tiny_model

GIB = 2**30

QWEN_1_5B = {
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_32B = {
    "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
"""The public shapes of Qwen2.5-1.5B, Llama-3.1-8B, Qwen2.5-32B and Llama-3.1-70B."""


def found_for(config: dict[str, Any], folder: Path, gibibytes: int, ratio: float) -> list[Fit]:
    (folder / "config.json").write_text(json.dumps(config))
    return list(fits(shape_by_config(folder), gibibytes * GIB, ratio))


def of(found: list[Fit], train: str) -> dict[str, Fit]:
    return {fit.stage: fit for fit in found if fit.stage in TRAINED and fit.train == train}


@pytest.mark.parametrize(
    ("config", "weights"), [(QWEN_1_5B, 1_543_714_304), (LLAMA_8B, 8_030_261_248), (QWEN_32B, 32_763_876_352)]
)
def test_weights_are_counted_as_the_model_cards_say(tmp_path: Path, config: dict[str, Any], weights: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert shape_by_config(tmp_path / "config.json").weights == weights


@pytest.mark.parametrize("tied", [True, False])
def test_config_alone_gives_the_shape_that_the_weights_give(tmp_path: Path, tied: bool) -> None:
    tiny_model(tied=tied).save_pretrained(tmp_path)
    assert shape_by_config(tmp_path) == shape_of(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100},
        {
            "model_type": "qwen3_moe", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 100, "intermediate_size": 64, "moe_intermediate_size": 16,
            "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16,
        },
        {
            "model_type": "gemma3_text", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 100, "intermediate_size": 64, "head_dim": 16,
        },
    ],
    ids=lambda config: str(config["model_type"]),
)  # fmt: skip
def test_other_architectures_have_a_shape_too(tmp_path: Path, config: dict[str, Any]) -> None:
    found = found_for(config, tmp_path, 24, 0.05)
    assert all(fit.fits for fit in found)


def test_over_several_devices_zero_is_shown_stage_by_stage(tmp_path: Path) -> None:
    """Llama 8 B: 128.5 GB of weights, gradients and moments fit no device of 80 GiB, an eighth of them does."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    shape = shape_by_config(tmp_path)
    found = {fit.train: fit for fit in fits(shape, 80 * GIB, 0.05, devices=8) if fit.stage == "warmup"}
    shared = [found[name] for name in ("all", "all, zero 1", "all, zero 2", "all, zero 3")]
    assert [fit.fits for fit in shared] == [False, False, True, True]
    assert [fit.held_bytes for fit in shared] == sorted((fit.held_bytes for fit in shared), reverse=True)
    assert not any("zero" in fit.train for fit in fits(shape, 80 * GIB, 0.05))


def test_1_5_b_on_24_gb_all_stages_with_moments_in_8_bits_or_in_a_mask(tmp_path: Path) -> None:
    found = found_for(QWEN_1_5B, tmp_path, 24, 0.05)
    assert all(fit.fits for fit in found if fit.train not in ("all",))
    assert not any(fit.fits for fit in of(found, "all").values()), "moments in float32 are too large"


def test_8_b_on_24_gb_in_a_mask_of_3_percent_throughout(tmp_path: Path) -> None:
    found = found_for(LLAMA_8B, tmp_path, 24, 0.03)
    assert all(fit.fits for fit in of(found, "mask").values())
    others = [fit for fit in found if fit.stage not in TRAINED and (fit.stage, fit.train) != ("locate by gradient", "")]
    assert len(others) == 3
    assert all(fit.fits for fit in others)
    assert not any(fit.fits for fit in of(found, "all, moments 8bit").values())


def test_8_b_on_80_gb_masked_with_rows_of_8192_tokens(tmp_path: Path) -> None:
    assert all(fit.longest >= 8192 for fit in of(found_for(LLAMA_8B, tmp_path, 80, 0.05), "mask").values())


def test_32_b_on_80_gb_in_a_mask_of_1_percent(tmp_path: Path) -> None:
    found = found_for(QWEN_32B, tmp_path, 80, 0.01)
    assert all(fit.fits for fit in of(found, "mask").values())
    assert not any(fit.fits for fit in of(found_for(QWEN_32B, tmp_path, 80, 0.05), "mask").values())


def test_the_command_prints_every_stage(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    argv = [sys.executable, "-m", "allo_engine.estimate", "fit", str(tmp_path), "--device-gb", "24", "--ratio", "0.03"]
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["shape"]["weights"] == 8_030_261_248
    assert {stage["stage"] for stage in answer["stages"]} >= set(TRAINED)


def test_what_is_no_model_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing"), "--device-gb", "24"]) == 2
    assert "names no causal language model" in capsys.readouterr().err
