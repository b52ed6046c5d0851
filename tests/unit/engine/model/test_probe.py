"""The probe's verdict on every architecture, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from allo_engine.model.probe import probe
from allo_engine.report import StageError
from tests.architectures import ALONE, PACKED, save_random
from tests.tiny import save_tiny


@pytest.mark.parametrize("name", PACKED)
def test_rows_of_what_only_attends_by_position_may_be_packed(name: str, tmp_path: Path) -> None:
    found = probe(save_random(name, tmp_path))
    assert found.packs, found.reason


@pytest.mark.parametrize("name", ALONE)
def test_what_is_recurrent_or_counts_places_is_trained_one_sequence_a_row(name: str, tmp_path: Path) -> None:
    found = probe(save_random(name, tmp_path))
    assert not found.packs
    assert found.reason.endswith(".")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "no_such_model"}, "transformers"),
        ({"model_type": "vit"}, "no causal language model"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    config = save_tiny(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(StageError, match=word) as caught:
        probe(tmp_path)
    assert "\n" not in caught.value.message


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    (save_tiny(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(StageError, match="safetensors"):
        probe(tmp_path)


def test_a_checkpoint_without_one_of_its_model_s_weights_is_refused(tmp_path: Path) -> None:
    path = save_tiny(tmp_path) / "model.safetensors"
    stored = load_file(path)
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"model\.layers\.1\.mlp\.up_proj\.weight, 0 entries of 2048") as caught:
        probe(tmp_path)
    assert caught.value.code == "bad_model"
