"""Tokens drawn from the nucleus: the fewest likeliest tokens whose probability reaches top_p (arXiv 1904.09751).

A token is drawn by inverting the nucleus' distribution function at a uniform, so that it depends on its row alone. The
function runs in the order of ids: in that of probabilities, two tokens of nearly the same would change places with the
rounding of a matrix product, which differs from batch to batch.

The nucleus is looked for among a few candidates. Whether it was found there is an answer that stays on the device with
the others, so that drawing waits for nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CANDIDATES = 64
"""How many of the likeliest tokens are looked at first."""

MORE = 16
"""Where a nucleus is larger, so many times as many are looked at next: to order a whole vocabulary takes milliseconds a
row, to find its thousand likeliest tokens a tenth of that."""

EVERYTHING = CANDIDATES * MORE**4
"""More tokens than any vocabulary has."""


def candidates_for(size: int, found: bool) -> int:
    """How many tokens to look at for a nucleus that was as large, or for one that was not found among as many."""
    looked_at = CANDIDATES
    while looked_at < size or (looked_at == size and not found):
        looked_at *= MORE
    return looked_at


class Drawn(NamedTuple):
    """Tokens, the sizes of their nuclei, and whether all of a nucleus was looked at, else neither counts: [B] each."""

    tokens: Tensor
    sizes: Tensor
    found: Tensor


def draw(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float, candidates: int) -> Drawn:
    """One token a row: the likeliest at temperature 0, else of a nucleus among so many `candidates`."""
    if temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        ones_B = torch.ones_like(tokens_B)
        return Drawn(tokens_B, ones_B, ones_B.bool())
    vocabulary = logits_BV.shape[-1]
    scaled_BV = logits_BV / temperature
    looked_at = min(candidates, vocabulary)
    top_BK, tokens_BK = scaled_BV.topk(looked_at, -1)
    probs_BK = (top_BK - scaled_BV.logsumexp(-1, keepdim=True)).double().exp()
    before_B = (probs_BK.cumsum(-1) < top_p).sum(-1, keepdim=True)  # tokens of the nucleus but its last
    last_B = before_B.clamp(max=looked_at - 1)
    outside_BK = torch.arange(looked_at, device=logits_BV.device) > last_B
    by_token_BK, order_BK = tokens_BK.sort(-1)
    mass_BK = probs_BK.masked_fill(outside_BK, 0).gather(1, order_BK).cumsum(-1)
    whole_B = mass_BK[:, -1:]
    target = (uniforms_B[:, None] * whole_B).minimum(whole_B.nextafter(torch.zeros_like(whole_B)))
    chosen = torch.searchsorted(mass_BK, target, right=True)
    found_B = (before_B[:, 0] < looked_at) | (looked_at == vocabulary)  # rounding may leave the whole below top_p
    return Drawn(by_token_BK.gather(1, chosen)[:, 0], last_B[:, 0] + 1, found_B)
