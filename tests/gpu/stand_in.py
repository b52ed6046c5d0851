"""A model of one of SmolLM2's shapes with weights of chance, where none with the real ones is at hand.

Training and scoring take as long as with the real one. Its logits are spread about as a trained model's are, so that
sampling looks for nuclei of a like size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allo_engine.model.loading import device
from tests.benchmarks.material import WORDS
from tests.benchmarks.sample import END

SPECIAL = ["<unk>", "<|begin|>", "<|end|>"]
CHAT = "{% for message in messages %}user : {{ message['content'] }} {% endfor %}assistant :"
SPREAD = 0.15
"""Of the weights as they are drawn: of random logits at this scale some hundred tokens make 95 %."""


SMALL = "135M"
SHAPES = {
    SMALL: {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
             "num_key_value_heads": 32},
}  # fmt: skip
"""SmolLM2's."""


def config(shape: str = SMALL, spread: float = 0.02) -> LlamaConfig:
    return LlamaConfig(
        **SHAPES[shape], vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=END, pad_token_id=END, initializer_range=spread,
    )  # fmt: skip


def save(folder: Path, shape: str = SMALL) -> Path:
    """A folder as the benchmarks want it: each of their words is one token."""
    assert SPECIAL.index("<|end|>") == END
    torch.manual_seed(0)
    with device():
        drawn = LlamaForCausalLM._from_config(config(shape, spread=SPREAD), dtype=torch.bfloat16)
    drawn.save_pretrained(folder)
    words = [*SPECIAL, *WORDS, "user", "assistant", "Answer", ":"]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return folder
