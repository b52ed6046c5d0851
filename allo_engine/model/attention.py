"""Attention that leaves out what it need not compute, where FlexAttention is not at hand.

`forest`        rows of sequences that share their beginnings (see sequences.py): every block of a row attends to its
                ancestors and itself, not to the whole row with most of it masked.
`folded_heads`  one new token a row: query heads that share a head of keys and values (GQA, arXiv 2305.13245) stand in
                its query dimension, so that the cache is not copied for each of them at each step.

Both give SDPA's numbers, and are SDPA where their case is not given.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Name = Literal["forest", "folded_heads"]

BLOCK = 128
"""Trees of at most so many tokens are attended to as a whole: a smaller product would not be faster."""


@dataclass(frozen=True)
class Block:
    """Tokens [start, stop) of a row: `keys` [P + N] are the places that they attend to, their ancestors first.

    `bias` [N, P + N] is added to the scores: 0 where one attends, −∞ elsewhere.
    """

    start: int
    stop: int
    keys: Tensor
    bias: Tensor
    _folded: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def folded(self, times: int, dtype: torch.dtype) -> Tensor:
        """The bias for so many query heads in the query dimension, [times·N, P + N]; made once for all layers."""
        if (times, dtype) not in self._folded:
            self._folded[times, dtype] = self.bias.to(dtype).repeat(times, 1)
        return self._folded[times, dtype]


def blocks_of(ends_L: Tensor, size: int = BLOCK) -> list[Block]:
    """A row cut into blocks, in order; `ends_L[k]` is where the tree below token k ends."""
    ends: list[int] = ends_L.tolist()
    cut = _cut(ends, 0, len(ends), [], size)
    return [_block(start, stop, ancestors, ends_L) for start, stop, ancestors in cut]


def attended(ends_L: Tensor) -> int:
    """The pairs of a query and a key that a row's attention computes."""
    return sum(block.bias.numel() for block in blocks_of(ends_L))


def _cut(
    ends: Sequence[int], start: int, stop: int, ancestors: list[int], size: int
) -> Iterator[tuple[int, int, list[int]]]:
    """(start, stop, ancestors) of the blocks of the trees in [start, stop), which all have the same ancestors."""
    while start < stop:
        end = ends[start]
        if end - start > size:  # its trunk, then what grows on it
            trunk = next((place for place in range(start + 1, end) if ends[place] != end), end)
            yield start, trunk, ancestors
            yield from _cut(ends, trunk, end, [*ancestors, *range(start, trunk)], size)
        else:
            while end < stop and ends[end] - start <= size:
                end = ends[end]
            yield start, end, ancestors
        start = end


def _block(start: int, stop: int, ancestors: list[int], ends_L: Tensor) -> Block:
    own = torch.arange(start, stop, device=ends_L.device)
    seen = (own[None, :] <= own[:, None]) & (own[:, None] < ends_L[start:stop][None, :])
    bias = torch.zeros(len(own), len(ancestors) + len(own), device=ends_L.device)
    bias[:, len(ancestors) :].masked_fill_(~seen, -torch.inf)
    return Block(start, stop, torch.cat([torch.tensor(ancestors, dtype=torch.long, device=own.device), own]), bias)


def forest(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    blocks: Sequence[Block] = (),
    **more: Any,
) -> tuple[Tensor, None]:
    """query [1, H, L, D], key and value [1, K, L, D] of a row cut into blocks → [1, L, H, D]."""
    if not blocks:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    parts = [
        _folded(
            query[:, :, block.start : block.stop],
            key.index_select(2, block.keys),
            value.index_select(2, block.keys),
            block.folded(query.shape[1] // key.shape[1], query.dtype),
            more.get("scaling"),
        )
        for block in blocks
    ]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def folded_heads(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """query [B, H, 1, D], key and value [B, K, L, D], mask [B, 1, 1, L] → [B, 1, H, D]; else it is SDPA's own."""
    if query.shape[2] != 1 or more.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return _folded(query, key, value, attention_mask, more.get("scaling")).transpose(1, 2), None


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """SDPA [B, H, N, D] with the H / K query heads that share a head of keys and values in the query dimension.

    So stands the mask: [H / K · N, L], or [B, 1, 1, L] for one query.
    """
    batch, heads, length, size = query.shape
    shared = key.shape[1]
    folded = query.reshape(batch, shared, heads // shared * length, size)
    return scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling).reshape(query.shape)


for _name, _function in (("forest", forest), ("folded_heads", folded_heads)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


def attend_by(model: PreTrainedModel, name: Name) -> None:
    """Let a model attend so, if it lets its attention be chosen and hands on what it is given for it."""
    handed_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(model.base_model.forward).parameters.values())
    if model._can_set_attn_implementation() and handed_on:
        model.set_attn_implementation(name)
