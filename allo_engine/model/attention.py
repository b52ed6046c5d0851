"""Attention of packed rows, whatever the architecture: our own entry among those that transformers chooses from.

A model asks for a mask a layer type (full, within a sliding window, within a chunk) and hands what it gets to its
layers' attention. Registered under one name stand

`mask`    inside `attending`, for a row that is a forest of sequences (see sequences.py): who descends from whom, and
          what the model's own mask function allows at the tokens' positions. It answers with blocks, or on CUDA with
          FlexAttention's BlockMask. Elsewhere, in decoding, the mask that SDPA has.
`attend`  attends by what `mask` answered with. Every block of a row attends to what it sees, not to the whole row
          with most of it masked; one new token a row (decoding) has the query heads that share a head of keys and
          values (GQA, arXiv 2305.13245) in its query dimension, so that the cache is not copied for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

NAME = "forest"
"""What a model's attn_implementation is where its rows are packed."""

BLOCK = 128
"""Trees of at most so many tokens are attended to as a whole: a smaller product would not be faster. Flex's, too."""

COMPILED = 64
"""How often FlexAttention may be compiled in a process."""

MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""(batch, head, query, key) → whether the query attends to the key; all four broadcast."""


@dataclass(frozen=True)
class Forest:
    """Where a row's tokens stand: `ends[k]` [L] is where the tree below token k ends, `positions` [L] are theirs in
    their own sequences."""

    ends: Tensor
    positions: Tensor

    def attends(self, allowed: MaskFunction) -> MaskFunction:
        """Token q of the row attends to token k: its ancestor or itself, as far as a model allows by position."""
        ends, positions = self.ends, self.positions

        def below(batch: Any, head: Any, query: Any, key: Any) -> Any:  # noqa: ARG001 - as FlexAttention asks
            return (key <= query) & (query < ends[key])

        def attends(batch: Any, head: Any, query: Any, key: Any) -> Any:
            return below(batch, head, query, key) & allowed(batch, head, positions[query], positions[key])

        return below if allowed is causal_mask_function else attends  # an ancestor is never later


_forest: ContextVar[Forest | None] = ContextVar("forest", default=None)


@contextmanager
def attending(ends_L: Tensor, positions_L: Tensor) -> Iterator[None]:
    """Models called inside see one packed row. (Layers that run again for the backward pass keep their masks.)"""
    token = _forest.set(Forest(ends_L, positions_L))
    try:
        yield
    finally:
        _forest.reset(token)


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


class Blocks(tuple[Block, ...]):
    """A row's blocks, in order: what stands for a mask between `mask` and `attend`."""


def blocks_of(forest: Forest, allowed: MaskFunction = causal_mask_function, size: int = BLOCK) -> Blocks:
    """A row cut into blocks, in order."""
    ends: list[int] = forest.ends.tolist()
    attends = forest.attends(allowed)
    return Blocks(_block(cut, attends, forest.ends.device) for cut in _cut(ends, 0, len(ends), [], size))


def attended(ends_L: Tensor) -> int:
    """The pairs of a query and a key that a row's attention computes, where a model has no windows."""
    ends: list[int] = ends_L.tolist()
    cuts = _cut(ends, 0, len(ends), [], BLOCK)
    return sum((stop - start) * (len(ancestors) + stop - start) for start, stop, ancestors in cuts)


Cut = tuple[int, int, list[int]]
"""(start, stop, ancestors) of a block."""


def _cut(ends: Sequence[int], start: int, stop: int, ancestors: list[int], size: int) -> Iterator[Cut]:
    """The blocks of the trees in [start, stop), which all have the same ancestors."""
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


def _block(cut: Cut, attends: MaskFunction, device: torch.device) -> Block:
    start, stop, ancestors = cut
    keys = torch.tensor([*ancestors, *range(start, stop)], device=device)
    seen = attends(0, 0, torch.arange(start, stop, device=device)[:, None], keys[None, :])
    near = seen.any(0)  # within a window, an ancestor that is too far from all of them is not read
    bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)
    return Block(start, stop, keys[near], bias[:, near])


def block_mask(forest: Forest, allowed: MaskFunction = causal_mask_function, window: int | None = None) -> BlockMask:
    """The same for FlexAttention, which skips the blocks where nothing attends. No mask of all pairs is made.

    Tile (Q, K) has an attended pair only if K is not behind Q, a tree of K reaches into Q and, with a window, their
    positions come near enough; it is whole if every tree of K reaches over all of Q and nothing but descent counts.
    """
    length = len(forest.ends)
    tiles = -(-length // BLOCK)
    room = tiles * BLOCK - length

    def tiled(values_L: Tensor, filled: int) -> Tensor:
        return nn.functional.pad(values_L, (0, room), value=filled).view(tiles, BLOCK)

    place = torch.arange(tiles, device=forest.ends.device)
    starts, before, same = place * BLOCK, place[None, :] < place[:, None], place[None, :] == place[:, None]
    some = same | before & (tiled(forest.ends, 0).amax(1)[None, :] > starts[:, None])
    stops = (starts + BLOCK).clamp(max=length)
    whole = before & (tiled(forest.ends, length).amin(1)[None, :] >= stops[:, None])
    if window is not None:
        nearest = tiled(forest.positions, 2**31).amin(1)[:, None] - tiled(forest.positions, -1).amax(1)[None, :]
        some &= nearest < window
    if allowed is not causal_mask_function:
        whole = torch.zeros_like(whole)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=forest.attends(allowed),
        seq_lengths=(length, length),
    )


def _listed(tiles_QK: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of a row of them are meant, and these tiles' numbers before the others', each with [1, 1, …]."""
    order = tiles_QK.int().argsort(dim=-1, descending=True, stable=True)
    return tiles_QK.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


@cache
def _flex() -> Callable[..., Any]:
    """FlexAttention, compiled for the first row's length, then for any, and for those of a single tile.

    That is with gradients and without, and for every mask of a model's layers: more often than torch allows, beyond
    which it would hold the scores of all pairs, without a word but a warning.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED)
    return torch.compile(flex_attention)


@cache
def _capped(most: float) -> Callable[..., Tensor]:
    """Scores that softly stay below (Gemma 2). One function, which is what is compiled, for all calls."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return most * torch.tanh(score / most)

    return capped


def _flexed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """FlexAttention [B, H, N, D]; a sink takes its share of what a head attends with, and gives nothing for it."""
    found = _flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"BACKEND": "TRITON"},  # for rows of one tile it would choose a kernel that it cannot make
        return_aux=None if sinks is None else AuxRequest(lse=True),
    )
    if sinks is None:
        return found  # type: ignore[no-any-return]
    given, beside = found
    share = torch.sigmoid(beside.lse - sinks.float()[:, None])
    return (given * share[..., None]).to(given.dtype)  # type: ignore[no-any-return]


def mask(*, mask_function: MaskFunction, local_size: int | None = None, **asked: Any) -> Any:
    """What a model's layers of one type attend to (see transformers' masking_utils)."""
    forest = _forest.get()
    if forest is None:
        return sdpa_mask(mask_function=mask_function, local_size=local_size, **asked)
    if forest.ends.device.type == "cuda":
        return block_mask(forest, mask_function, local_size)
    return blocks_of(forest, mask_function)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any
) -> tuple[Tensor, Tensor | None]:
    """query [B, H, N, D], key and value [B, K, L, D], and what `mask` gave → [B, N, H, D]."""
    scaling, softcap, sinks = more.get("scaling"), more.get("softcap"), more.get("s_aux")
    if isinstance(attention_mask, BlockMask):
        found = _flexed(query, key, value, attention_mask, scaling, softcap, sinks)
        return found.transpose(1, 2).contiguous(), None
    scored = softcap is not None or sinks is not None
    if isinstance(attention_mask, Blocks):
        parts = []
        for block in attention_mask:
            own = query[:, :, block.start : block.stop]
            keys, values = key.index_select(2, block.keys), value.index_select(2, block.keys)
            if scored:
                parts.append(_scored(own, keys, values, block.bias, scaling, softcap, sinks))
            else:
                bias = block.folded(query.shape[1] // key.shape[1], _computed_in(query))
                parts.append(_folded(own, keys, values, bias, scaling))
        return torch.cat(parts, 2).transpose(1, 2).contiguous(), None
    if scored:
        return _scored(query, key, value, attention_mask, scaling, softcap, sinks).transpose(1, 2).contiguous(), None
    if query.shape[2] != 1 or more.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    return _folded(query, key, value, attention_mask, scaling).transpose(1, 2), None


def _computed_in(query: Tensor) -> torch.dtype:
    """What SDPA computes in: under autocast, what is not of it yet is copied for every layer, and kept by each."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """SDPA [B, H, N, D] with the H / K query heads that share a head of keys and values in the query dimension.

    So stands the mask: [H / K · N, L], or [B, 1, 1, L] for one query.
    """
    batch, heads, length, size = query.shape
    shared = key.shape[1]
    folded = query.reshape(batch, shared, heads // shared * length, size)
    found = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(batch, heads, length, value.shape[-1])


def _scored(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """What SDPA does not know, [B, H, N, D]: scores that are softly capped (Gemma 2), a sink a head (GPT-OSS).

    The mask is boolean or added to the scores, [B, 1, N, L] or [N, L]; without one, attention is causal.
    """
    batch, heads, length, size = query.shape
    shared = key.shape[1]
    grouped = query.reshape(batch, shared, heads // shared, length, size)
    scores = grouped @ key[:, :, None].transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril(key.shape[2] - length)
    seen = mask if mask.dtype == torch.bool else mask > -torch.inf
    seen = seen if seen.dim() == 2 else seen[:, :, None]
    scores = scores.float().masked_fill(~seen, torch.finfo(torch.float32).min)
    if sinks is not None:
        column = sinks.float().view(1, shared, heads // shared, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return (weights @ value[:, :, None]).reshape(batch, heads, length, value.shape[-1])


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask)
