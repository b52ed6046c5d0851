"""Where stored weights lie in memory, held against what plain transformers makes of the same checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from allo_engine.checkpoints.delta import apply_delta, merge, write_delta
from allo_engine.checkpoints.folder import fingerprint, stored_tensors, tied
from allo_engine.checkpoints.names import names_of, skeleton, strided, text_weights
from allo_engine.masking.entries import stored_values
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.loading import save_model
from allo_engine.model.shape import shape_of
from allo_engine.report import StageError
from tests.tiny import save_tiny, tiny_model
from tests.unit.engine.renamed import RENAMED, save_renamed

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=RENAMED)
def renamed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16, as most are."""
    return save_renamed(request.param, tmp_path_factory.mktemp(request.param), torch.bfloat16)


def plain(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def weights_of(model: PreTrainedModel) -> Weights:
    """By their names in memory, whatever parametrizations stand around them."""
    named = {name.replace("parametrizations.", ""): weight for name, weight in model.state_dict().items()}
    return {name.removesuffix(".original"): w.clone() for name, w in named.items() if not name.endswith(".0.values")}


def same_bits(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].view(torch.int32), second[name].view(torch.int32)) for name in first
    )


def vision(name: str) -> bool:
    return "vision" in name or "projector" in name


# --- the map


def test_every_stored_entry_lies_where_its_place_says(renamed: Path) -> None:
    model = plain(renamed)
    weights, stored = dict(model.named_parameters()), load_file(renamed / "model.safetensors")
    names = names_of(model, renamed)
    assert names.places.keys() == {name for name in stored if not vision(name)}
    assert not names.copies
    for name, place in names.places.items():
        flat = weights[place.weight].detach().reshape(-1)
        entries = np.arange(stored[name].numel())
        assert torch.equal(flat[torch.from_numpy(place.in_weight(entries))], stored[name].float().reshape(-1))
        assert torch.equal(place.view(weights[place.weight]).reshape(-1), stored[name].float().reshape(-1))
        assert np.array_equal(place.in_stored(place.in_weight(entries)), entries)


def test_a_model_without_its_weights_has_the_same_map(renamed: Path) -> None:
    assert names_of(skeleton(renamed), renamed) == names_of(plain(renamed), renamed)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False), st.integers(0, 9))
def test_axes_in_any_order_are_a_place_that_leads_there_and_back(shape: list[int], random: Random, offset: int) -> None:
    order = np.random.default_rng(random.randint(0, 99)).permutation(len(shape))
    positions = offset + np.arange(np.prod(shape)).reshape(shape).transpose(order).reshape(-1)
    place = strided("w", positions)
    entries = np.arange(len(positions))
    assert np.array_equal(place.in_weight(entries), positions)
    assert np.array_equal(place.in_stored(positions), entries)
    weight = torch.arange(offset + len(positions))
    assert np.array_equal(place.view(weight).reshape(-1).numpy(), positions)


def test_entries_without_a_rule_are_refused() -> None:
    for positions in ([0, 1, 3, 2], [0, 2, 1], [0, 1, 2, 3, 5, 4]):
        with pytest.raises(StageError, match="without a rule"):
            strided("w", np.array(positions))


# --- there and back


def test_a_merged_checkpoint_is_the_trained_model_bit_by_bit(renamed: Path, tmp_path: Path) -> None:
    model, random = plain(renamed), np.random.default_rng(0)
    names = names_of(model, renamed)
    places = {name: np.flatnonzero(random.random(size) < 0.2) for name, size in names.sizes.items()}
    sparse = SparseModel(model, stored_values(renamed, places), names)
    for values in sparse.values.values():
        values.data += 1e-3 * torch.randn(values.shape)
    sparse.write_back()
    trained = sparse.trained()
    assert trained.keys() == {name for name in places if len(places[name])}
    assert all(np.array_equal(trained[name][0], places[name]) for name in trained)
    write_delta(trained, renamed, tmp_path / "delta")
    merge(renamed, tmp_path / "delta", tmp_path / "merged")

    merged = plain(tmp_path / "merged")
    assert same_bits(weights_of(merged), weights_of(model))
    assert merged.dtype == AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32
    before, after = stored_tensors(renamed), stored_tensors(tmp_path / "merged")
    assert {name: tensor["shape"] for name, tensor in after.items()} == {n: t["shape"] for n, t in before.items()}
    fresh = plain(renamed)
    assert not same_bits(weights_of(fresh), weights_of(model))
    apply_delta(fresh, tmp_path / "delta", renamed)
    assert same_bits(weights_of(fresh), weights_of(model))


def test_a_saved_model_has_its_base_s_names_and_what_it_did_not_train(renamed: Path, tmp_path: Path) -> None:
    model, base = plain(renamed), load_file(renamed / "model.safetensors")
    with torch.no_grad():
        for weight in text_weights(model).values():
            weight.add_(1e-3 * torch.randn(weight.shape))
    save_model(model, renamed, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert {name: t.shape for name, t in saved.items()} == {name: t.shape for name, t in base.items()}
    assert all(torch.equal(saved[name], base[name].float()) for name in saved if vision(name))
    assert same_bits(weights_of(plain(tmp_path / "saved")), weights_of(model))


def test_all_weights_of_a_model_of_text_are_trained() -> None:
    model = tiny_model()
    assert text_weights(model).keys() == dict(model.named_parameters()).keys()


# --- stored in other ways


def test_embeddings_that_are_stored_twice_are_one_weight(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model in (plain(tmp_path), skeleton(tmp_path)):
        names = names_of(model, tmp_path)
        assert names.copies == {"lm_head.weight": "model.embed_tokens.weight"}
        assert sum(names.sizes.values()) == model.num_parameters()

    stored["lm_head.weight"][0] += 1  # two weights then, whatever the configuration says
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model in (plain(tmp_path), skeleton(tmp_path)):
        names = names_of(model, tmp_path)
        assert not names.copies
        assert names.places["lm_head.weight"].weight == "lm_head.weight"


def test_a_head_that_is_stored_for_both_is_found(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = plain(tmp_path)
    assert names_of(model, tmp_path).places["lm_head.weight"].weight == "model.embed_tokens.weight"
    write_delta({"lm_head.weight": (np.array([5]), np.float32([2.0]))}, tmp_path, tmp_path / "delta")
    apply_delta(model, tmp_path / "delta", tmp_path)
    assert model.get_input_embeddings().weight.view(-1)[5] == 2.0


def test_a_checkpoint_of_the_decoder_alone_keeps_its_names_and_its_buffers(tmp_path: Path) -> None:
    """The published GPT-2 stores neither the prefix of its decoder nor its head, but its causal masks."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    model.save_pretrained(tmp_path / "base")
    stored = load_file(tmp_path / "base" / "model.safetensors")
    stored = {name.removeprefix("transformer."): weight for name, weight in stored.items()}
    stored["h.0.attn.bias"] = torch.ones(32, 32, dtype=torch.bool).tril()
    save_file(stored, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    base = plain(tmp_path / "base")
    names = names_of(base, tmp_path / "base")
    assert names.places.keys() == stored.keys() - {"h.0.attn.bias"}
    assert names.places["wte.weight"].weight == "transformer.wte.weight"
    write_delta({"wte.weight": (np.array([5]), np.float32([2.0]))}, tmp_path / "base", tmp_path / "delta")
    merge(tmp_path / "base", tmp_path / "delta", tmp_path / "merged", torch.bfloat16)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == stored.keys()
    assert torch.equal(merged["h.0.attn.bias"], stored["h.0.attn.bias"])
    assert merged["wte.weight"].view(-1)[5] == 2.0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda stored: stored.pop("model.norm.weight"), "weight model.norm.weight, 0 entries of 32 are stored"),
        (lambda stored: stored.update({"model.norm.weight": torch.ones(31)}), r"is stored as \(31,\), the model's"),
        (lambda stored: stored.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "stored as I8"),
        (
            lambda stored: stored.pop("model.layers.1.mlp.experts.2.up_proj.weight"),
            "experts.gate_up_proj cannot be put together",
        ),
    ],
)
def test_a_checkpoint_that_is_not_the_model_s_is_refused(
    tmp_path: Path, damage: Callable[[Weights], None], reason: str
) -> None:
    save_renamed("qwen3_moe", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    damage(stored)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=reason) as caught:
        names_of(skeleton(tmp_path), tmp_path)
    assert caught.value.code == "bad_model"


# --- what a folder says


@pytest.mark.parametrize(("model_type", "its_default"), [("llama", False), ("gemma", True)])
def test_where_a_configuration_does_not_say_whether_embeddings_are_tied_its_class_does(
    tmp_path: Path, model_type: str, its_default: bool
) -> None:
    save_tiny(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((tmp_path / "config.json").read_text())
    for said, expected in [(True, True), (False, False), (None, its_default)]:
        config = written | {"model_type": model_type, "tie_word_embeddings": said}
        config = {key: value for key, value in config.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert tied(tmp_path) == AutoModelForCausalLM.from_pretrained(tmp_path).config.tie_word_embeddings == expected
        assert shape_of(tmp_path).tied == expected
        assert shape_of(tmp_path).weights == plain(tmp_path).num_parameters()


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    before, times = fingerprint(tmp_path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # nothing tells it from what was hashed
    assert fingerprint(tmp_path) == before
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert fingerprint(tmp_path) != before
