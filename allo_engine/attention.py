"""Attention of one new token a row, where query heads share heads of keys and values (GQA, arXiv 2305.13245).

The usual way repeats keys and values for every query head, and so copies the whole cache at each step. With a single
query a head, the queries that share a head may as well stand in its query dimension: the same numbers, and no copy.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "folded_heads"


def folded_heads(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """query [B, H, 1, D], key and value [B, K, L, D], mask [B, 1, 1, L] → [B, 1, H, D]; else it is SDPA's own."""
    batch, heads, length, size = query.shape
    if length != 1 or more.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    shared = key.shape[1]
    folded = query.reshape(batch, shared, heads // shared, size)
    found = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=more.get("scaling"))
    return found.reshape(batch, 1, heads, size), None


AttentionInterface.register(NAME, folded_heads)
AttentionMaskInterface.register(NAME, sdpa_mask)


def fold_heads(model: PreTrainedModel) -> None:
    """Let a model decode so, if it lets its attention be chosen."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
