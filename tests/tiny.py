"""A tiny language model that the tests make: a real Llama with a real tokenizer, of some thousand weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


Merges = Sequence[tuple[str, str]]


def tiny_tokenizer(chat: bool = True, merges: Merges = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text has ids, and every byte is a token, unless it is merged with the next."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    merged = [first + second for first, second in merges]
    vocabulary = {token: place for place, token in enumerate([*special, *alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[*merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )
    if chat:
        fast.chat_template = CHAT
    return fast


def tiny_model(seed: int = 0, tied: bool = True, hidden: int = 32, vocabulary: int = 261) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny(folder: Path, seed: int = 0, chat: bool = True, hidden: int = 32, merges: Merges = ()) -> Path:
    """A model folder as a user would register it."""
    tiny_model(seed, hidden=hidden, vocabulary=261 + len(merges)).save_pretrained(folder)
    tiny_tokenizer(chat, merges).save_pretrained(folder)
    return folder
