"""A causal language model's sizes, from its config.json and its tensors' shapes. Free of torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allo_engine.checkpoints.folder import stored_tensors, tied

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A causal language model's sizes: tied weights count once; `largest` is the largest tensor's entries.

    `intermediate` is what one token meets: of a mixture of experts, all that it is sent to. `norms` is how many norms
    of the hidden size a layer has; with `head_norms`, queries and keys have theirs.
    """

    weights: int
    stored_bytes: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    largest: int
    norms: int = 2
    head_norms: bool = False


def shape_of(folder: Path) -> Shape:
    """A model's shape from its config.json and the headers of its safetensors files; no weight is read.

    Raises OSError or ValueError where these files are missing or damaged, KeyError where a size is not named.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = stored_tensors(folder)
    shape = shape_from(config, {name: tensor["shape"] for name, tensor in stored.items()}, tied(folder))
    offsets = [tensor["data_offsets"] for tensor in stored.values()]
    return replace(shape, stored_bytes=sum(end - begin for begin, end in offsets))


def shape_in_memory(model: PreTrainedModel) -> Shape:
    """The shape of a model of transformers, filled or not. Raises KeyError where a size is not named."""
    weights = {name: list(weight.shape) for name, weight in model.named_parameters()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[no-untyped-call]
    return shape_from(model.config.to_dict(), weights, head is not None and head.weight is embedding.weight)


def shape_from(config: Mapping[str, Any], weights: Mapping[str, Sequence[int]], one_embedding: bool) -> Shape:
    """A model's shape from config.json's content, its tensors' shapes by name, and whether its head is its embedding;
    `stored_bytes` as of float32.

    Raises KeyError where a size is not named.
    """
    config = config.get("text_config", config)
    entries = [math.prod(size) for name, size in weights.items() if not (one_embedding and name == "lm_head.weight")]
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    first = [name for name in weights if re.search(r"\.0\.", name)]
    return Shape(
        weights=sum(entries),
        stored_bytes=4 * sum(entries),
        layers=_size(config, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_intermediate(config, hidden),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or hidden // heads,
        vocabulary=_size(config, "vocab_size"),
        tied=one_embedding,
        largest=max(entries),
        norms=sum("norm" in name and list(weights[name]) == [hidden] and ".experts." not in name for name in first)
        or 2,
        head_norms=any("q_norm" in name for name in first),
    )


_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab_size": ("vocab_size",),
}
"""What models call their sizes."""


def _size(config: Mapping[str, Any], name: str) -> int:
    return int(next((config[other] for other in _NAMES[name] if config.get(other)), None) or config[name])


def _intermediate(config: Mapping[str, Any], hidden: int) -> int:
    """The size between the products of the feed-forward part, of all experts that one token goes to."""
    dense = next((config[name] for name in ("intermediate_size", "n_inner", "ffn_dim") if config.get(name)), 4 * hidden)
    routed = config.get("num_experts_per_tok") or config.get("top_k_experts")
    if not routed:
        return int(dense)
    one = config.get("moe_intermediate_size") or dense
    return int(routed * one + (config.get("shared_expert_intermediate_size") or 0))
