"""How far an export is from the model that it was made of: both read by their own readers, on a few texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from allo_engine.model.loading import plain_model
from allo_engine.model.tokenizer import load_tokenizer
from allo_engine.report import StageError

TEXTS = (
    "The answer is 42.",
    "Ann has 12 nuts.\n\n3 of them are left, and it's raining.",
    "def double(x):\n    return 2 * x",
)
"""Words, digits, a break before a digit, a contraction, indentation: where tokenizers differ."""


@dataclass(frozen=True)
class Outputs:
    """What a model makes of the texts: the ids of each, and its logits [tokens, vocabulary]."""

    ids: Sequence[list[int]]
    logits: Sequence[Tensor]


def of_folder(folder: Path) -> Outputs:
    """What plain transformers computes, in float32."""
    return outputs(plain_model(folder, where=torch.device("cpu")), ids_of(load_tokenizer(folder)))


def ids_of(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [list(tokenizer(text)["input_ids"]) for text in TEXTS]


@torch.no_grad()
def outputs(model: nn.Module, ids: Sequence[list[int]]) -> Outputs:
    return Outputs(ids, [model(torch.tensor([row])).logits[0].float() for row in ids])


def difference(wanted: Outputs, found: Sequence[Tensor]) -> dict[str, float]:
    """{max_abs, mean_abs, largest}: of the differences between logits, and the largest logit itself, all absolute.

    Raises StageError bad_export where they have nothing to do with each other: what was written is not that model.
    """
    gaps = torch.cat([(one - other).abs().flatten() for one, other in zip(wanted.logits, found, strict=True)])
    largest = max(float(logits.abs().max()) for logits in wanted.logits)
    if not gaps.mean() < largest / 2:
        raise StageError(
            "bad_export", f"What was written reads back as another model: its logits are {gaps.max():g} off."
        )
    return {"max_abs": float(gaps.max()), "mean_abs": float(gaps.mean()), "largest": largest}


Figures = dict[str, Any]
"""What is told of an export: `logits` as above, and what its kind adds."""
