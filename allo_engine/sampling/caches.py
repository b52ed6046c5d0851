"""Keys and values of the rows that are decoded together: of rows that come and go, or of a model's own kind.

`InPlace`   each row's token at position p stands in slot p of a tensor that is allocated once. Rows have prompts of any
            length, and a row that has ended gives its place to another. What a row attends to is what the model's own
            mask of that layer type (full, within a window, within a chunk) says of its position.
`Own`       what the model itself keeps: states of recurrent and convolutional layers, anything. All rows have the same
            length, nothing is padded, and rows only leave.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import sdpa_mask

from allo_engine.model.attention import attend
from allo_engine.model.decoding import ALIGNED

NAME = "rows_in_place"
"""What a model's attn_implementation is where its rows' keys and values stand in place."""


class Rows(Protocol):
    """What the model knows of the rows [0, count) that are decoded."""

    joins: bool
    """Whether prompts of any length may join at any time, and rows may be decoded again; else all begin together."""

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Run the model over prompts, to have rows begin with them."""

    def begin(self, prompts: Sequence[int], places: range) -> None:
        """Let rows begin with prompts, by their place in what was read last."""

    def move(self, sources: Sequence[int], places: Sequence[int], count: int) -> None:
        """Put rows in other rows' places; rows [0, count) are left."""

    def logits(self, tokens_B: Tensor, positions_B: Tensor, longest: int) -> Tensor:
        """Append a token a row at its position, `longest` the last of them; the next one's logits, float32 [B, V]."""


class _Layer(DynamicLayer):
    """One layer's `kept` keys and values, [rows, K, length, D] each; rows [0, B) and slots [0, width) are read."""

    def __init__(self, rows: int, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.length, self.width = rows, length, 0
        self.places = self.positions = torch.empty(0, dtype=torch.long)
        self.kept: list[Tensor] = []

    def allocate(self, keys: Tensor, values: Tensor) -> None:
        """Once. What was never written is masked, and must be finite for that."""
        if not self.kept:
            sizes = [(self.rows, states.shape[1], self.length, states.shape[3]) for states in (keys, values)]
            self.kept = [torch.zeros(size, dtype=keys.dtype, device=keys.device) for size in sizes]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.allocate(key_states, value_states)
        for kept, states in zip(self.kept, (key_states, value_states), strict=True):
            kept[self.places, :, self.positions] = states[:, :, 0]
        keys, values = (kept[: len(self.places), :, : self.width] for kept in self.kept)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - transformers asks so
        return self.width, 0

    def get_seq_length(self) -> int:
        return self.width - 1


class _Positioned(Cache):
    """Layers whose rows stand at positions of their own."""

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        layer: Any = self.layers[layer_idx]
        return layer.positions


def mask(
    *, q_offset: Any, kv_length: int, mask_function: Callable[..., Tensor], dtype: torch.dtype, **asked: Any
) -> Any:
    """What a layer type's rows attend to, added to the scores: [B, 1, 1, W], one new token a row; else SDPA's own."""
    if not isinstance(q_offset, Tensor):
        return sdpa_mask(q_offset=q_offset, kv_length=kv_length, mask_function=mask_function, dtype=dtype, **asked)
    batch = torch.arange(len(q_offset), device=q_offset.device)[:, None, None, None]
    slots = torch.arange(kv_length, device=q_offset.device)
    seen = mask_function(batch, 0, q_offset[:, None, None, None], slots[None, None, None, :])
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask)


def attention_layers(model: PreTrainedModel) -> int:
    """How many layers keep keys and values; 0 if some layer keeps something else."""
    layers = DynamicCache(config=model.config).layers
    return len(layers) if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers) else 0


class InPlace:
    """`rows` rows of at most `length` tokens."""

    joins = True

    def __init__(self, model: PreTrainedModel, rows: int, length: int) -> None:
        self._model = model
        length = -(-length // ALIGNED) * ALIGNED
        self._layers = [_Layer(rows, length) for _ in range(attention_layers(model))]
        self._cache = _Positioned(layers=list(self._layers))
        self._length, self._all = length, torch.arange(rows, device=model.device)
        self._prompts: list[tuple[Tensor, Tensor]] = []

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Padded on the right: what stands there is masked until the row's own tokens take its place."""
        width = max(map(len, prompts)) - 1
        self._prompts = []
        if width:
            layers: list[Any] = [DynamicLayer() for _ in self._layers]  # type: ignore[no-untyped-call]
            padded = [[*prompt[:-1], *[0] * (width + 1 - len(prompt))] for prompt in prompts]
            ids = torch.tensor(padded, device=self._model.device)
            positions = torch.arange(width, device=ids.device).expand_as(ids)
            self._model.base_model(input_ids=ids, position_ids=positions, past_key_values=Cache(layers), use_cache=True)
            self._prompts = [(layer.keys, layer.values) for layer in layers]

    def begin(self, prompts: Sequence[int], places: range) -> None:
        chosen = torch.tensor(prompts, device=self._model.device)
        for layer, prompt in zip(self._layers, self._prompts, strict=False):
            layer.allocate(*prompt)
            for kept, read in zip(layer.kept, prompt, strict=True):
                kept[places.start : places.stop, :, : read.shape[2]] = read[chosen]

    def move(self, sources: Sequence[int], places: Sequence[int], count: int) -> None:  # noqa: ARG002
        given, taken = (torch.tensor(rows, device=self._model.device) for rows in (sources, places))
        for layer in self._layers if sources else ():
            for kept in layer.kept:
                kept[taken, :, : layer.width] = kept[given, :, : layer.width]

    def logits(self, tokens_B: Tensor, positions_B: Tensor, longest: int) -> Tensor:
        width = min(-(-(longest + 1) // ALIGNED) * ALIGNED, self._length)
        for layer in self._layers:
            layer.places, layer.positions, layer.width = self._all[: len(tokens_B)], positions_B, width
        output = self._model(
            input_ids=tokens_B[:, None],
            position_ids=positions_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def token_bytes(self) -> int:
        """Bytes that a row's token takes, once something has been decoded."""
        return sum(kept.shape[1] * kept.shape[3] * kept.element_size() for layer in self._layers for kept in layer.kept)


class Own:
    """Rows of one length in the cache that the model makes for itself."""

    joins = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache: Any = None
        known = inspect.signature(model.forward).parameters
        self._name = "cache_params" if "cache_params" in known else "past_key_values"
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}  # of a prompt, not of all its tokens

    def _forward(self, ids: Tensor) -> Tensor:
        output = self._model(input_ids=ids, use_cache=True, **{self._name: self._cache}, **self._last)
        self._cache = output[self._name]
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        self._cache = None
        if len(prompts[0]) > 1:
            self._forward(torch.tensor([list(prompt[:-1]) for prompt in prompts], device=self._model.device))

    def begin(self, prompts: Sequence[int], places: range) -> None:  # noqa: ARG002 - as they come
        self._select(prompts)

    def move(self, sources: Sequence[int], places: Sequence[int], count: int) -> None:
        kept = list(range(count))
        for source, place in zip(sources, places, strict=True):
            kept[place] = source
        self._select(kept)

    def _select(self, rows: Sequence[int]) -> None:
        if self._cache is not None:
            self._cache.reorder_cache(torch.tensor(list(rows), device=self._model.device))

    def logits(self, tokens_B: Tensor, positions_B: Tensor, longest: int) -> Tensor:  # noqa: ARG002 - it counts itself
        return self._forward(tokens_B[:, None])
