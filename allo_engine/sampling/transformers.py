"""Decoding with the transformers backend: one prefill a problem, rows leave the batch when they end, exact top-p.

Each response draws its uniforms from a random stream of its own and inverts the distribution function of the nucleus,
so that what it gets does not depend on the batch (up to the rounding of a matrix product).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

_COMPACT_BELOW = 0.75
"""Rows that ended are taken out of the batch when fewer than this share still run: taking them out copies the cache."""

_CANDIDATES = 64
"""How many of the likeliest tokens are looked at first for the nucleus."""


@dataclass(frozen=True)
class Request:
    """A problem to answer: its number and seed name its random streams."""

    number: int
    prompt: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Settings:
    """n responses a request; temperature 0 is greedy; any of `ends` ends a response."""

    max_tokens: int
    ends: tuple[int, ...]
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 64


class Response(NamedTuple):
    """A response's ids, and each token's logπ under the model itself: at temperature 1, in nats."""

    ids: list[int]
    logps: list[float]


def generate(
    model: PreTrainedModel, requests: Sequence[Request], settings: Settings
) -> Iterator[dict[int, list[Response]]]:
    """Responses by the request's number, a batch at a time; each ends with one of `ends` or is `max_tokens` long.

    Prompts of like length are decoded together.
    """
    ordered = sorted(requests, key=lambda request: (len(request.prompt), request.number))
    size = max(1, settings.batch_size // settings.n)
    for start in range(0, len(ordered), size):
        yield _decode(model, ordered[start : start + size], settings)


@torch.inference_mode()
def _decode(model: PreTrainedModel, requests: Sequence[Request], settings: Settings) -> dict[int, list[Response]]:
    ids, mask = _left_padded([request.prompt for request in requests], model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    logits = _next_logits(model, ids, mask, positions, cache).repeat_interleave(settings.n, 0)
    cache.batch_repeat_interleave(settings.n)
    mask = mask.repeat_interleave(settings.n, 0)
    position = positions[:, -1:].repeat_interleave(settings.n, 0)
    uniforms = _uniforms(requests, settings).to(model.device)
    responses = [Response([], []) for _ in range(len(uniforms))]
    running = torch.arange(len(responses), device=model.device)  # the response that each row of the batch decodes
    ends = torch.tensor(settings.ends, device=model.device)
    ended = torch.zeros(len(responses), dtype=torch.bool, device=model.device)
    for step in range(settings.max_tokens):
        tokens = draw(logits, uniforms[running, step], settings.temperature, settings.top_p)
        logps = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        for row, (token, logp) in enumerate(zip(tokens.tolist(), logps.tolist(), strict=True)):
            if not ended[row]:
                responses[int(running[row])].ids.append(token)
                responses[int(running[row])].logps.append(logp)
        ended |= torch.isin(tokens, ends)
        if bool(ended.all()) or step + 1 == settings.max_tokens:
            break
        if float((~ended).float().mean()) < _COMPACT_BELOW:
            kept = torch.nonzero(~ended)[:, 0]
            cache.batch_select_indices(kept)
            tokens, mask, position, running, ended = (x[kept] for x in (tokens, mask, position, running, ended))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        position = position + 1
        logits = _next_logits(model, tokens[:, None], mask, position, cache)
    n = settings.n
    return {request.number: responses[place * n : place * n + n] for place, request in enumerate(requests)}


def _next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Logits of the next token, float32 [B, V]. A mask without padding is left out: attention is faster without one."""
    attention = None if bool(mask.all()) else mask
    output = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()  # type: ignore[no-any-return]


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _uniforms(requests: Sequence[Request], settings: Settings) -> Tensor:
    """Uniforms in [0, 1) of every response and step, float64 [requests · n, max_tokens]."""
    if settings.temperature == 0:
        return torch.zeros(len(requests) * settings.n, settings.max_tokens, dtype=torch.float64)
    streams = [
        np.random.Generator(np.random.Philox(key=[request.seed, request.number * 65536 + sample]))
        for request in requests
        for sample in range(settings.n)
    ]
    return torch.from_numpy(np.stack([stream.random(settings.max_tokens) for stream in streams]))


def draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token a row, [B]: the likeliest at temperature 0, else by inverting the nucleus' distribution function.

    The nucleus is the smallest set of likeliest tokens whose probability reaches top_p (arXiv 1904.09751). It is looked
    for among the few likeliest tokens, and among more of them only as long as some row's nucleus is larger.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    probs_BV = torch.softmax(logits_BV / temperature, -1)
    vocabulary = probs_BV.shape[-1]
    candidates = min(_CANDIDATES, vocabulary)
    while True:
        probs_BK, tokens_BK = probs_BV.topk(candidates, -1)
        mass_BK = probs_BK.double().cumsum(-1)
        if candidates == vocabulary or bool((mass_BK[:, -1] >= top_p).all()):
            break
        candidates = min(candidates * 8, vocabulary)
    size_B = (mass_BK < top_p).sum(-1, keepdim=True).clamp(max=candidates - 1)
    target = uniforms_B[:, None] * mass_BK.gather(1, size_B)
    chosen = torch.searchsorted(mass_BK, target, right=True).clamp(max=size_B)
    return tokens_BK.gather(1, chosen)[:, 0]
