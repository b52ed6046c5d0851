"""The settings of stage forget. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from allo_engine.bases import Count, Positive
from allo_engine.bases_trained import LocatedConfig


class ForgetConfig(LocatedConfig):
    """Token-weighted NPO on wrong responses, in the mask."""

    learning_rate: Positive = 5e-7
    batch_size: Count = 128
    loss: Literal["npo", "simnpo"] = Field(
        default="npo",
        description="'npo' is the paper's, a token at a time against the reference; 'simnpo' (arXiv 2410.07163) takes "
        "the mean log-probability of a response's weighted tokens and no reference.",
    )
    beta: Positive = Field(default=0.1, description="SimNPO's authors take 2.5.")
    gamma: float = Field(default=0.0, ge=0, le=1e9, description="Margin of SimNPO; without effect under NPO.")
    weights: Literal["unaligned", "one_minus", "legacy"] = Field(
        default="unaligned",
        description="'unaligned' w = 1[P < 0.5]; 'one_minus' w = 1 - P; 'legacy' w = P, as the released script has it.",
    )

    def weight(self, probability: Any) -> Any:
        """w of a token, or of a tensor of tokens, by the probability P that the rewriter lets it stay."""
        by = {"unaligned": (probability < 0.5) * 1.0, "one_minus": 1 - probability, "legacy": probability}
        return by[self.weights]
