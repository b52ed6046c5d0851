"""Tiny models whose checkpoints name or arrange weights otherwise than transformers does in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.architectures import VISION
from tests.tiny import tiny_tokenizer

_SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_HEADS: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}

RENAMED = ("qwen3_moe", "mixtral", "gpt_neox", "gemma3")


def renamed_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "qwen3_moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_SIZES, **_HEADS, **experts))
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**_SIZES, **_HEADS, num_local_experts=4))
    if kind == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES))
    text = _SIZES | _HEADS | {"query_pre_attn_scalar": 8}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4))


def save_renamed(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model folder as a user would register it."""
    renamed_model(kind).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
