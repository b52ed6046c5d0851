"""Models and tokenizers from a folder of safetensors, and the one forward pass that every stage shares."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from allo_engine.config import Precision
from allo_engine.model.attention import attend_by, blocks_of
from allo_engine.model.head import TokenLogps
from allo_engine.model.sequences import Row
from allo_engine.report import StageError

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
"""The published template of ALLO's QA and maths runs."""

Prompt = str | list[dict[str, str]]
"""A problem's text, or the messages of a conversation."""


def device() -> torch.device:
    """The accelerator that is there, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def dtype_of(precision: Precision) -> torch.dtype:
    """What a stage computes in. "auto" is bfloat16 on an accelerator that has it, else float32."""
    if precision == "auto":
        return torch.bfloat16 if device().type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def load_model(folder: Path, dtype: torch.dtype = torch.float32, decoding: bool = False) -> PreTrainedModel:
    """A causal language model in evaluation mode: without dropout, a step is a function of its batch alone.

    Packed rows go through FlexAttention on CUDA; it has no backward pass on a CPU and is not made for `decoding`, so
    there attention is SDPA, on no more than it needs (see attention.py).
    """
    flex = device().type == "cuda" and not decoding
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="flex_attention" if flex else "sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    if not flex:
        attend_by(model, "folded_heads" if decoding else "forest")
    return model.to(device()).eval()  # type: ignore[arg-type,no-any-return]  # its wrapper hides the signature


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing: layers keep their inputs alone and run again for the backward pass."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # of the layer itself, which asks for it; what is inside stays without dropout


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise StageError("bad_model", "The model's tokenizer names no end-of-sequence token: add eos_token to it.")
    return tokenizer


def context_length(folder: Path) -> int:
    """The longest sequence that a model was made for, in tokens."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("max_position_embeddings") or 2**31)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """A checkpoint that plain transformers loads, in the precision it was trained in: float32."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fingerprint(folder: Path) -> str:
    """sha256 over a checkpoint's weight files: what a delta names as its base."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def weight_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every stored tensor of a checkpoint by name, in the order of names, with the file that holds it."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names: dict[str, str] = json.loads(index.read_text())["weight_map"]
    else:
        names = dict.fromkeys(_names(folder / "model.safetensors"), "model.safetensors")
    for name in sorted(names):
        yield name, folder / names[name]


def _names(path: Path) -> list[str]:
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


class Encoder:
    """Text to token ids. A prompt's and a response's ids are made apart and joined as ids, never as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "auto") -> None:
        self.tokenizer = tokenizer
        self._template = self._resolve(template)

    def _resolve(self, template: str) -> str:
        if template == "auto":
            template = "chat" if self.tokenizer.chat_template else "alpaca"
        if template == "chat":
            if not self.tokenizer.chat_template:
                raise StageError(
                    "bad_template",
                    "The model has no chat template: set template to 'alpaca' or to a text with {problem}.",
                )
            return template
        template = ALPACA if template == "alpaca" else template
        if "{problem}" not in template:
            raise StageError("bad_template", "The template must hold {problem}, where the problem's text goes.")
        return template

    def prompt(self, prompt: Prompt) -> list[int]:
        """A prompt's ids, the special tokens that begin a sequence included."""
        if isinstance(prompt, list) or self._template == "chat":
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return self._chat(messages)
        return self.text(self._template.replace("{problem}", prompt), begin=True)

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        if not self.tokenizer.chat_template:
            raise StageError("bad_template", "The file holds conversations and the model has no chat template.")
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.text(str(text))  # the template writes the special tokens itself

    def text(self, text: str, begin: bool = False) -> list[int]:
        """A text's ids; with `begin`, behind the tokens that the model's sequences begin with (BOS, if it has one)."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._beginning + ids if begin else ids

    @functools.cached_property
    def _beginning(self) -> list[int]:
        wrapped: list[int] = self.tokenizer("x")["input_ids"]
        return [wrapped[0]] if wrapped[0] == self.tokenizer.bos_token_id else []

    def decode(self, ids: list[int]) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def end(self) -> int:
        """The id that ends a response."""
        return int(self.tokenizer.eos_token_id)

    def response(self, text: str) -> list[int]:
        """A response's ids with the end of sequence."""
        return [*self.text(text), self.end]


def token_logps(model: PreTrainedModel, row: Row) -> Tensor:
    """logπ of every predicted token of a row given all that it attends to: float32 [R], in nats.

    The head runs on the positions that predict a token and on no other, a few at a time where it is a plain
    projection; what a model does beyond that (a soft cap, a scale) is left to the model itself.
    """
    arguments = {"input_ids": row.ids, "position_ids": row.positions, "use_cache": False, **_attention(model, row)}
    if not _has_plain_head(model):
        logits_RV = model(**arguments, logits_to_keep=row.sources).logits[0]
        return -cross_entropy(logits_RV.float(), row.targets, reduction="none")
    hidden_RH = model.base_model(**arguments).last_hidden_state[0, row.sources]
    head: torch.nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight_VH = head.weight
    if torch.is_autocast_enabled(hidden_RH.device.type):
        hidden_RH = hidden_RH.to(torch.get_autocast_dtype(hidden_RH.device.type))
        weight_VH = weight_VH.to(hidden_RH.dtype)
    return TokenLogps.apply(hidden_RH, weight_VH, head.bias, row.targets)  # type: ignore[no-any-return,no-untyped-call]


def _attention(model: PreTrainedModel, row: Row) -> dict[str, Any]:
    """What a row's tokens attend to, as the model's attention takes it."""
    implementation = model.config._attn_implementation
    if implementation == "flex_attention":
        return {"attention_mask": row.block_mask()}
    mask = row.mask()
    if implementation == "forest":
        return {"attention_mask": mask, "blocks": blocks_of(row.ends)}
    added = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device)  # made once here, not once a layer
    return {"attention_mask": added.masked_fill_(~mask, -torch.inf)}


_plain_heads: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are the hidden states times the head's weight and nothing else, found by trying."""
    if model not in _plain_heads:
        ids = torch.arange(4, device=model.device)[None]
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        _plain_heads[model] = isinstance(head, torch.nn.Linear) and torch.equal(
            head(hidden), model(input_ids=ids, use_cache=False).logits
        )
    return _plain_heads[model]
