"""The settings of stage pair. Free of torch."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from allo_engine.bases import Count, Share, StageConfig


class PairConfig(StageConfig):
    """Right responses against wrong ones."""

    max_pairs: Count = Field(default=5, description="Pairs a problem.")
    max_negatives: Count = Field(default=10, description="Distinct wrong responses a problem to forget.")
    pass_rate: tuple[Share, Share] = Field(
        default=(0.0, 1.0),
        description="[low, high]: problems of which a smaller or larger share of the responses is right give no pairs; "
        "too hard ones may harm (arXiv 2502.09650). Their wrong responses are forgotten all the same.",
    )

    @field_validator("pass_rate")
    @classmethod
    def _ordered(cls, rates: tuple[float, float]) -> tuple[float, float]:
        if rates[0] > rates[1]:
            raise PydanticCustomError("low_above_high", "is [low, high]: low may not be above high")
        return rates
