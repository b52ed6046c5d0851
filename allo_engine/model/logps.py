"""Log-probabilities of responses' tokens, in packed rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from allo_engine.config import Precision
from allo_engine.model.ahead import ahead
from allo_engine.model.attention import blocks_of
from allo_engine.model.head import TokenLogps
from allo_engine.model.loading import dtype_of
from allo_engine.model.sequences import Group, Row, build_row, rows_of
from allo_engine.report import Tick

PerToken = Mapping[tuple[int, int], Tensor]
"""A number a scored token, float32 on the CPU, by (group key, response)."""


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


def score(model: PreTrainedModel, groups: Sequence[Group], budget: int, tick: Tick) -> PerToken:
    """logπ of every response's scored tokens, in nats, in rows of at most `budget` tokens."""
    return score_rows(model, rows_of(groups, budget), tick)


@torch.no_grad()
def score_rows(model: PreTrainedModel, rows: Iterable[Sequence[Group]], tick: Tick) -> PerToken:
    """logπ of the scored tokens of rows that are cut already; one transfer a row.

    Where two rows hold the same response, the later one's is given.
    """
    found: dict[tuple[int, int], Tensor] = {}
    with closing(ahead((groups, build_row(groups, model.device)) for groups in rows)) as built:
        for groups, row in built:
            logps_M = token_logps(model, row)[row.members].cpu()
            found |= {(groups[place].key, index): logps for (place, index), logps in row.cut(logps_M).items()}
            tick(sum(group.tokens() for group in groups))
    return found


def computing(model: PreTrainedModel, precision: Precision) -> torch.autocast:
    """Where float32 weights compute in 16 bits: they are rounded for each product and stay as they are."""
    dtype = dtype_of(precision)
    return torch.autocast(model.device.type, dtype, enabled=dtype != model.dtype)
