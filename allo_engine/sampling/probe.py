"""Whether a model's rows can be decoded in place: tried out, as no list of architectures would be complete."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allo_engine.model.rows import is_out_of_memory
from allo_engine.sampling.caches import NAME, InPlace, Own, attention_layers

PROMPTS = ([1, 2, 3, 4, 5, 6, 7], [3], [7, 5, 3])
"""Prompts of several lengths, one of them without anything to read ahead."""

TOLERANCE = 0.05
"""Of the logits' own spread: below what a wrong position, a lost state or a forgotten soft cap does."""


@torch.inference_mode()
def token_bytes_in_place(model: PreTrainedModel) -> int:
    """Bytes of a row's token, if prompts of different lengths, decoded together, have the logits that each has alone,
    or in the model's own cache in as many rows: in 16 bits these two may be further apart than TOLERANCE.

    Leaves the model attending in place then; else as it did, and the answer is 0.
    """
    before = model.config._attn_implementation
    if before == "eager" or not attention_layers(model) or not model._can_set_attn_implementation():
        return 0
    alone = _alone(model)
    try:
        model.set_attn_implementation(NAME)
        kept = InPlace(model, len(PROMPTS), max(map(len, PROMPTS)) + 1)
        found = _together(kept, model.device)
    except Exception as error:  # whatever a model has against it
        if is_out_of_memory(error):
            raise
        found = torch.full_like(alone, torch.nan)
    if _near(found, alone):
        return kept.token_bytes()
    model.set_attn_implementation(before)
    if _near(found, _in_own_cache(model)):
        model.set_attn_implementation(NAME)
        return kept.token_bytes()
    return 0


def _near(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= TOLERANCE * (expected - expected.mean(-1, keepdim=True)).norm())


def _alone(model: PreTrainedModel) -> Tensor:
    """The logits behind every prompt and behind its last token twice, [2 prompts, V]."""
    sequences = [*PROMPTS, *([*prompt, prompt[-1]] for prompt in PROMPTS)]
    ids = [torch.tensor([sequence], device=model.device) for sequence in sequences]
    return torch.stack([model(input_ids=sequence, use_cache=False).logits[0, -1].float() for sequence in ids])


def _in_own_cache(model: PreTrainedModel) -> Tensor:
    """The same, each prompt in as many rows as are decoded together, so that products have the same sizes."""
    steps: list[list[Tensor]] = []
    for prompt in PROMPTS:
        kept = Own(model)
        kept.read([prompt] * len(PROMPTS))
        tokens = torch.tensor(prompt[-1:] * len(PROMPTS), device=model.device)
        steps.append([kept.logits(tokens, tokens, 0)[0] for _ in range(2)])
    return torch.stack([first for first, _ in steps] + [second for _, second in steps])


def _together(kept: InPlace, device: torch.device) -> Tensor:
    kept.read(PROMPTS)
    kept.begin(range(len(PROMPTS)), range(len(PROMPTS)))
    tokens = torch.tensor([prompt[-1] for prompt in PROMPTS], device=device)
    positions = torch.tensor([len(prompt) - 1 for prompt in PROMPTS], device=device)
    longest = max(map(len, PROMPTS))
    return torch.cat([kept.logits(tokens, positions, longest - 1), kept.logits(tokens, positions + 1, longest)])
