"""Tiny random models of the architectures that people have, each as a folder that a user would register."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tiny import tiny_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}

OLD: dict[str, Any] = {"vocab_size": 261, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
GPT2: dict[str, Any] = {**OLD, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = 6
"""Tokens of a sliding window: the tests' sequences are longer."""

BOTH: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

CHUNKS: dict[str, Any] = {
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "attention_chunk_size": WINDOW,
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
FALCON: dict[str, Any] = {**OLD, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
STATES: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
LOCAL: dict[str, Any] = {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}

PACKED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", COMMON),
    "Qwen2": ("qwen2", COMMON),
    "Qwen3": ("qwen3", COMMON),
    "Qwen3 MoE": ("qwen3_moe", {**COMMON, **EXPERTS}),
    "Mixtral": ("mixtral", {**COMMON, "num_local_experts": 4}),
    "Gemma 2": ("gemma2", {**COMMON, **BOTH, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8}),
    "Gemma 3 (text)": ("gemma3_text", {**COMMON, **BOTH, "query_pre_attn_scalar": 8}),
    "Gemma 3 (multimodal)": (
        "gemma3",
        {
            "text_config": {**COMMON, **BOTH, "query_pre_attn_scalar": 8},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
        },
    ),
    "Mistral (window)": ("mistral", {**COMMON, "sliding_window": WINDOW}),
    "Phi-3": ("phi3", {**COMMON, "sliding_window": WINDOW}),
    "Phi": ("phi", COMMON),
    "SmolLM3": ("smollm3", COMMON),
    "GPT-2": ("gpt2", GPT2),
    "OPT": ("opt", {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "OLMo 2": ("olmo2", COMMON),
    "OLMo 3": ("olmo3", {**COMMON, **BOTH}),
    "StarCoder2": ("starcoder2", {**COMMON, "sliding_window": WINDOW}),
    "StableLM": ("stablelm", COMMON),
    "Granite": ("granite", COMMON),
    "GPT-NeoX": ("gpt_neox", COMMON),
    "Cohere": ("cohere", COMMON),
    "Cohere 2": ("cohere2", {**COMMON, **BOTH}),
    "GLM-4": ("glm4", COMMON),
    "GPT-OSS": ("gpt_oss", {**COMMON, **BOTH, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Llama 4 (text)": ("llama4_text", {**COMMON, **CHUNKS}),
    "DeepSeek-V3": ("deepseek_v3", {**COMMON, **LATENT}),
    "EXAONE 4": ("exaone4", {**COMMON, **BOTH}),
    "Nemotron": ("nemotron", COMMON),
}  # fmt: skip

ALONE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Falcon": ("falcon", {**FALCON, "alibi": False}),
    "Falcon (ALiBi)": ("falcon", {**FALCON, "alibi": True}),
    "Qwen3.5": ("qwen3_5_text", {**COMMON, **LINEAR}),
    "Qwen3-Next": ("qwen3_next", {**COMMON, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16}),
    "LFM2": ("lfm2", {**COMMON, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "Falcon-H1": ("falcon_h1", {**COMMON, **STATES}),
    "Mamba": ("mamba", {**OLD, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "BLOOM": ("bloom", {**OLD, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "MPT": ("mpt", {**OLD, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "GPT-J": ("gptj", {**GPT2, "rotary_dim": 4}),
    "GPT-Neo": ("gpt_neo", {**OLD, "hidden_size": 32, "num_heads": 4, "num_layers": 2, **LOCAL}),
}  # fmt: skip

ARCHITECTURES = {**PACKED, **ALONE}


def random_model(name: str, seed: int = 0, **sizes: int) -> PreTrainedModel:
    """A model whose every weight counts: as drawn for training, they are so small that windows make no difference."""
    kind, given = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**given, **sizes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, weight.shape[-1] ** -0.5)
    return model


def save_random(name: str, folder: Path, **sizes: int) -> Path:
    random_model(name, **sizes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
