"""Log-probabilities of responses' tokens, in packed rows, or one sequence a row for models that cannot be packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from allo_engine.bases import Precision
from allo_engine.model.ahead import ahead, to_device
from allo_engine.model.attention import NAME, attending
from allo_engine.model.head import TokenLogps
from allo_engine.model.loading import dtype_of
from allo_engine.model.sequences import Group, Row, build_row, rows_of
from allo_engine.ranks import here
from allo_engine.report import Tick

Item = TypeVar("Item")

PerToken = Mapping[tuple[int, int], Tensor]
"""A number a scored token, float32 on the CPU, by (group key, response)."""


def token_logps(model: PreTrainedModel, row: Row) -> Tensor:
    """logπ of every predicted token of a row given all that it attends to: float32 [R], in nats.

    A model whose attention is not ours (see `load_model`) reads the row's sequences one after another.
    """
    if model.config._attn_implementation != NAME:
        with _products_alike(model):
            return _alone(model, row, _prediction(model))
    predicted = _prediction(model)
    with attending(row.ends, row.positions[0]):
        return predicted(model, row.arguments(), row.sources, row.targets)


def _products_alike(model: PreTrainedModel) -> AbstractContextManager[Any]:
    """Some recurrent layers keep float32 states among 16-bit weights (Mamba): autocast brings both into a product."""
    narrow = model.dtype != torch.float32
    return torch.autocast(model.device.type, model.dtype) if narrow else nullcontext()


Predicted = Callable[[PreTrainedModel, Mapping[str, Any], Tensor, Tensor], Tensor]
"""From a model, its arguments for one row, and R places: logπ of the targets [R] that the logits there predict."""


def _prediction(model: PreTrainedModel) -> Predicted:
    return _by_plain_head if _has_plain_head(model) else _by_whole_model


def _alone(model: PreTrainedModel, row: Row, predicted: Predicted) -> Tensor:
    """Each prediction of a row from the first sequence that makes it, read by itself."""
    wanted: dict[int, list[int]] = {}
    for number, place in enumerate(row.host_sources.tolist()):
        wanted.setdefault(place, []).append(number)
    columns: list[list[int]] = []
    for path in row.sequences():
        own = [(depth, number) for depth, place in enumerate(path) for number in wanted.pop(place, ())]
        if own:
            depths, numbers = zip(*own, strict=True)
            columns += [path, list(depths), list(numbers)]
    packed = to_device(torch.tensor([place for column in columns for place in column]), row.ids.device)
    pieces = packed.split([len(column) for column in columns])
    found = [
        predicted(model, {"input_ids": row.ids[:, path], "use_cache": False}, sources, row.targets[numbers])
        for path, sources, numbers in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True)
    ]
    return torch.cat(found)[torch.cat(pieces[2::3]).argsort()]


def _by_whole_model(
    model: PreTrainedModel, arguments: Mapping[str, Any], sources_R: Tensor, targets_R: Tensor
) -> Tensor:
    """What a model does beyond a plain projection (a soft cap, a scale) is left to the model itself."""
    logits_RV = model(**arguments, logits_to_keep=sources_R).logits[0]
    return -cross_entropy(logits_RV.float(), targets_R, reduction="none")


def _by_plain_head(
    model: PreTrainedModel, arguments: Mapping[str, Any], sources_R: Tensor, targets_R: Tensor
) -> Tensor:
    """The head runs on the positions that predict a token and on no other, a few at a time."""
    hidden_RH = model.base_model(**arguments).last_hidden_state[0, sources_R]
    head: torch.nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight_VH: Tensor = head.weight
    bias_V: Tensor | None = head.bias
    if not torch.is_grad_enabled():  # a function asks its inputs alone whether there will be a backward pass
        weight_VH, bias_V = weight_VH.detach(), None if bias_V is None else bias_V.detach()
    if torch.is_autocast_enabled(hidden_RH.device.type):
        hidden_RH = hidden_RH.to(torch.get_autocast_dtype(hidden_RH.device.type))
        weight_VH = weight_VH.to(hidden_RH.dtype)
    return TokenLogps.apply(hidden_RH, weight_VH, bias_V, targets_R)  # type: ignore[no-any-return,no-untyped-call]


_plain_heads: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are the hidden states times the head's weight and nothing else, found by trying."""
    if model not in _plain_heads:
        _plain_heads[model] = _tried_head(model)
    return _plain_heads[model]


def _tried_head(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, torch.nn.Linear) or model.base_model is model:
        return False
    ids = torch.arange(4, device=model.device)[None]
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return torch.equal(head(hidden), model(input_ids=ids, use_cache=False).logits)


class Reader(Protocol):
    """Who takes rows through a model that stands on several ranks."""

    def even(self, rows: Iterator[Item]) -> Iterator[Item]:
        """This rank's rows, while the other ranks go through theirs."""

    def logps(self, row: Row) -> Tensor:
        """As `token_logps` of the model."""


def score(model: PreTrainedModel, groups: Sequence[Group], budget: int, tick: Tick) -> PerToken:
    """logπ of every response's scored tokens, in nats, in rows of at most `budget` tokens: of this rank's rows."""
    return score_rows(model, rows_of(groups, budget), tick)


@torch.no_grad()
def score_rows(
    model: PreTrainedModel, rows: Sequence[Sequence[Group]], tick: Tick, reader: Reader | None = None
) -> PerToken:
    """logπ of the scored tokens of rows that are cut already; one transfer a row.

    Of several ranks, which all give the same rows, each scores its share of them: see `everyones`. Where two rows hold
    the same response, the later one's is given. `reader` is who has the model, if not this process.
    """
    found: dict[tuple[int, int], Tensor] = {}
    own = here().share(rows, lambda groups: sum(group.tokens() for group in groups))
    with closing(ahead((groups, build_row(groups, model.device)) for groups in own)) as built:
        for groups, row in reader.even(built) if reader else built:
            logps_R = reader.logps(row) if reader else token_logps(model, row)
            logps_M = logps_R[row.members].cpu()
            found |= {(groups[place].key, index): logps for (place, index), logps in row.cut(logps_M).items()}
            tick(sum(group.tokens() for group in groups))
    return found


def everyones(found: PerToken) -> PerToken:
    """What all ranks found, on every rank. A row holds what it would hold in one process, so it is the same bits."""
    parts = here().gathered({key: logps.numpy() for key, logps in found.items()})  # arrays cross quickly
    return {key: torch.from_numpy(logps) for part in parts for key, logps in part.items()}


def computing(model: PreTrainedModel, precision: Precision) -> torch.autocast:
    """Where float32 weights compute in 16 bits: they are rounded for each product and stay as they are."""
    dtype = dtype_of(precision)
    return torch.autocast(model.device.type, dtype, enabled=dtype != model.dtype)
