"""Every kind of model answers as it does alone: greedy texts are those of transformers' `generate`, one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from allo_engine.sampling import Request, Response, Settings, TransformersSampler

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
REFUSED = "refused"
"""Stands for a setting of COMMON that an architecture does not let be set."""

WINDOW = 6
"""Shorter than the sequences of these tests."""

LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 0,
    "mlp_only_layers": [0, 1],
}

IN_PLACE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen3": ("qwen3", {}),
    "qwen3 with windows": ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "phi3": ("phi3", {"sliding_window": WINDOW}),
    "gemma2": ("gemma2", {"sliding_window": WINDOW, "attn_logit_softcapping": None}),
    "gemma3": ("gemma3_text", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt2": ("gpt2", {}),
    "opt": ("opt", {"word_embed_proj_dim": 32, "ffn_dim": 48}),
    "gpt-neox": ("gpt_neox", {}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
}
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3.5": ("qwen3_5_text", LINEAR),
    "qwen3-next": ("qwen3_next", LINEAR),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "falcon-h1": ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
    "mamba": ("mamba", {"state_size": 4}),
    "falcon with alibi": (
        "falcon",
        {"alibi": True, "head_dim": REFUSED, "new_decoder_architecture": False, "multi_query": False},
    ),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}),
    "gpt-j": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "gpt-oss": ("gpt_oss", {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
PROMPTS = [[3, 10, 20], [3, 10, 20, 30, 40, 50, 60, 70, 80], [5], [9, 8, 7], [3, 40, 41, 42, 43, 44, 45, 46]]


def made(kind: tuple[str, dict[str, Any]]) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = {key: value for key, value in (COMMON | kind[1]).items() if value != REFUSED}
    config = AutoConfig.for_model(kind[0], **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases and norms too
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()  # type: ignore[no-untyped-call,no-any-return]


def answers(sampler: TransformersSampler, plan: Settings, n: int = 1) -> dict[tuple[int, int], Response]:
    requests = [Request(number, prompt, 0, 12, range(n)) for number, prompt in enumerate(PROMPTS)]
    return {(number, sample): response for number, sample, response in sampler.sample(requests, plan)}


def generated(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return list(map(int, found[0, len(prompt) :]))


@pytest.mark.parametrize("name", IN_PLACE | OWN)
def test_greedy_texts_are_those_of_generate(name: str) -> None:
    model = made((IN_PLACE | OWN)[name])
    expected = [generated(model, prompt) for prompt in PROMPTS]
    sampler = TransformersSampler(model)
    assert sampler.in_place == (name in IN_PLACE)
    found = answers(sampler, Settings((1,), rows=3))
    assert [found[number, 0].ids for number in range(len(PROMPTS))] == expected


@pytest.mark.parametrize("name", IN_PLACE | OWN)
def test_sampled_log_probabilities_are_those_of_a_plain_forward(name: str) -> None:
    model, plain = made((IN_PLACE | OWN)[name]), made((IN_PLACE | OWN)[name])
    for (number, _), (ids, logps) in answers(TransformersSampler(model), Settings((1,), 1.0, 0.9, 4), n=3).items():
        prompt = PROMPTS[number]
        expected = plain(torch.tensor([prompt + ids]), use_cache=False).logits[0].log_softmax(-1)
        places = torch.arange(len(ids)) + len(prompt) - 1
        assert torch.allclose(torch.tensor(logps), expected[places, torch.tensor(ids)], atol=1e-4)
