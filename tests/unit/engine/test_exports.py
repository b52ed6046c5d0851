"""Exports are read back by their own readers: GGUF by transformers and by gguf, the adapter by PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from allo_engine.checkpoints.convert import convert
from allo_engine.exports import gguf_file, lora
from allo_engine.exports.__main__ import main
from allo_engine.exports.checking import TEXTS
from allo_engine.exports.vocabulary import PATTERNS, pre_tokenizer
from allo_engine.report import StageError

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
LONG = SIZES | {"max_position_embeddings": 16_384}
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHORT = LLAMA31 | {"rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama untied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_theta=100_000.0)),
    "llama 3.1": lambda: LlamaForCausalLM(LlamaConfig(**LONG, rope_parameters=LLAMA31, head_dim=32)),
    "llama scaled otherwise": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=SHORT)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=128)),
}


def save_tokenizer(folder: Path, kind: str) -> None:
    """A byte-level BPE with merges, cutting text as Qwen's does, or digits off first as SmolLM's."""
    tokenizer = Tokenizer(models.BPE())
    if kind.startswith("qwen"):
        pattern = Regex(next(pattern for pattern, name in PATTERNS.items() if name == "qwen2"))
        cuts = [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    else:
        cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    fast.save_pretrained(folder)


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    KINDS[kind]().save_pretrained(folder)
    save_tokenizer(folder, kind)
    return folder


@pytest.mark.parametrize(("kind", "numbers"), [*((kind, "f16") for kind in KINDS), ("llama", "q8_0")])
def test_a_gguf_reads_back_as_the_model(tmp_path: Path, kind: str, numbers: str) -> None:
    folder = save(kind, tmp_path / "model")
    (tmp_path / "out").mkdir()
    figures = gguf_file.export(folder, tmp_path / "out", numbers)  # type: ignore[arg-type]
    allowed = 0.01 if numbers == "f16" else 0.1
    assert 0 < figures["logits"]["max_abs"] < allowed * figures["logits"]["largest"]
    assert figures["logits"]["mean_abs"] < figures["logits"]["max_abs"]
    assert figures["tokens_equal"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.gguf", "Modelfile"}
    assert (tmp_path / "out" / "Modelfile").read_text() == 'FROM ./model.gguf\nPARAMETER stop "<|end|>"\n'


def test_a_gguf_says_what_llama_cpp_must_know(tmp_path: Path) -> None:
    gguf_file.write(save("llama", tmp_path / "model"), tmp_path / "model.gguf", "q8_0")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["llama.rope.dimension_count"] == 16
    assert fields["tokenizer.ggml.eos_token_id"] == 1
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "message.content" in fields["tokenizer.chat_template"]
    assert fields["tokenizer.ggml.token_type"][:3] == [gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, 1]
    assert len(fields["tokenizer.ggml.tokens"]) == 320
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD319]"
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == gguf.GGMLQuantizationType.F32
    assert kinds["blk.1.ffn_up.weight"] == gguf.GGMLQuantizationType.Q8_0
    assert "output.weight" not in kinds


def test_what_has_no_place_in_a_gguf_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tmp_path / "gpt2", "gpt2")
    assert main(["gguf", str(tmp_path / "gpt2"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "GGUF is written for models of type llama, qwen2, qwen3; this one is gpt2."
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=scaled)).save_pretrained(tmp_path / "scaled")
    save_tokenizer(tmp_path / "scaled", "llama")
    with pytest.raises(StageError, match="this llama scales them as linear"):
        gguf_file.write(tmp_path / "scaled", tmp_path / "scaled.gguf", "f16")
    Qwen2ForCausalLM(Qwen2Config(**LONG, rope_parameters=LLAMA31)).save_pretrained(tmp_path / "other")
    with pytest.raises(StageError, match="this qwen2 scales them as llama3"):
        gguf_file.write(tmp_path / "other", tmp_path / "other.gguf", "f16")


@pytest.mark.parametrize(("kind", "rope"), [("llama 3.1", LLAMA31), ("llama scaled otherwise", SHORT)])
def test_scaled_rotary_embeddings_are_a_tensor_and_are_read_back(
    tmp_path: Path, kind: str, rope: dict[str, float]
) -> None:
    """llama.cpp divides the frequency of pair i by `rope_freqs.weight[i]`: 1 for short waves, `factor` for long ones,
    and something between for those between the two wavelengths."""
    folder = save(kind, tmp_path / "model")
    gguf_file.write(folder, tmp_path / "model.gguf", "f16")
    (tensor,) = [one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors if one.name == "rope_freqs.weight"]
    width = 32 if kind == "llama 3.1" else 16
    waves = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    turns = rope["original_max_position_embeddings"] / waves
    between = (turns - 1) / 3  # low_freq_factor 1, high_freq_factor 4
    smooth = 1 / ((1 - between) / rope["factor"] + between)
    wanted = np.where(turns > 4, 1, np.where(turns < 1, rope["factor"], smooth))
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    assert np.allclose(tensor.data, wanted, rtol=1e-5)
    assert ((wanted > 1) & (wanted < rope["factor"])).any()
    convert(tmp_path / "model.gguf", tmp_path / "back")
    back = AutoConfig.from_pretrained(tmp_path / "back")
    assert (back.rope_parameters == rope) == (kind == "llama 3.1")
    ids = torch.arange(2, 120)[None]
    with torch.no_grad():
        first, second = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (folder, tmp_path / "back"))
    assert (first - second).abs().max() < 0.01 * first.abs().max()


def test_pre_tokenizers_are_known_by_what_they_do_and_others_refused() -> None:
    level = {"type": "ByteLevel", "use_regex": False}
    for pattern, name in PATTERNS.items():
        split = {"type": "Split", "pattern": {"Regex": pattern}}
        assert pre_tokenizer({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}) == name
    assert pre_tokenizer({"pre_tokenizer": {"type": "ByteLevel"}}) == "gpt-2"
    with pytest.raises(StageError, match="Metaspace"):
        pre_tokenizer({"pre_tokenizer": {"type": "Metaspace"}})


def changed(folder: Path, base: Path, rank: int) -> Path:
    """The base with a step of this rank on every matrix of a layer."""
    save("llama", folder)
    weights = load_file(base / "model.safetensors")
    random = torch.Generator().manual_seed(1)
    for name, weight in weights.items():
        if "layers" in name and weight.ndim == 2:
            up, down = (
                torch.randn(len(weight), rank, generator=random),
                torch.randn(rank, weight.shape[1], generator=random),
            )
            weights[name] = weight + 0.02 * up @ down
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_adapter_of_the_changes_own_rank_is_the_aligned_model(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    aligned = changed(tmp_path / "aligned", base, rank=3)
    (tmp_path / "out").mkdir()
    figures = lora.export(aligned, base, tmp_path / "out", rank=4)
    assert figures["kept"] == pytest.approx(1, abs=1e-4)
    assert figures["logits"]["max_abs"] < 1e-3 * figures["logits"]["largest"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (4, 4, 14)


def test_an_adapter_of_a_lower_rank_says_how_much_it_keeps(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    aligned = changed(tmp_path / "aligned", base, rank=3)
    (tmp_path / "out").mkdir()
    figures = lora.export(aligned, base, tmp_path / "out", rank=1)
    assert 0.3 < figures["kept"] < 0.9
    assert figures["logits"]["max_abs"] > 1e-3


def test_the_factors_are_those_of_the_exact_decomposition() -> None:
    delta = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    up, down = lora.factors(delta, 5)
    left, sizes, right = np.linalg.svd(delta.numpy())
    assert np.allclose((up @ down).numpy(), left[:, :5] * sizes[:5] @ right[:5], atol=1e-3)
    assert [tuple(part.shape) for part in lora.factors(delta[:3], 5)] == [(3, 5), (5, 20)]


def test_models_that_do_not_belong_together_make_no_adapter(tmp_path: Path) -> None:
    base, same = save("llama", tmp_path / "base"), save("llama", tmp_path / "same")
    with pytest.raises(StageError, match="nothing for an adapter"):
        lora.export(same, base, tmp_path, rank=4)
    with pytest.raises(StageError, match="no weight"):
        lora.export(save("qwen2", tmp_path / "qwen"), base, tmp_path, rank=4)
