"""The settings of stage improve. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from allo_engine.bases import Count, Positive, Ratio, Weight
from allo_engine.bases_trained import LocatedConfig, PairLossConfig


class ImproveConfig(LocatedConfig, PairLossConfig):
    """Token-filtered DPO on pairs, in the mask."""

    learning_rate: Positive = 5e-6
    batch_size: Count = 128
    filter: Literal["rejected", "both"] = Field(
        default="rejected",
        description="'rejected' filters the rejected response's tokens, the paper's; 'both' also the chosen one's.",
    )
    filter_ratio: Ratio = Field(
        default=0.1, description="Share of filtered tokens, lowest log-ratio first, that count."
    )
    scale: Weight = Field(
        default=1.0,
        description="How far the result goes from the model that the job started from, along all that forgetting and "
        "improving changed: below 1 back towards it (WARP, arXiv 2406.16768), above 1 further. In a later round: "
        "from the model of the round before, along what this round changed.",
    )
    scales: tuple[Weight, ...] | None = Field(
        default=None,
        min_length=2,
        max_length=16,
        description="Several scales, of which the result has the one that is best, as best_by has it, on what "
        "validation_share holds out; null: scale is as given. One job tries them all, a sweep of scale has a job each.",
    )

    @field_validator("scales")
    @classmethod
    def _can_be_told_apart(cls, scales: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        data = info.data
        if scales is not None and not data.get("validation_share"):
            raise PydanticCustomError("needs_a_share", "are chosen on what is held out: set validation_share above 0")
        if scales is not None and data.get("train") == "all":
            raise PydanticCustomError("are_of_a_mask", "are tried in a mask: set train to 'mask', or give one scale")
        if scales is not None and data.get("scale") != 1:
            raise PydanticCustomError("twice_scaled", "stand in the place of scale: leave one of them out")
        if scales is not None and len(set(scales)) < len(scales):
            raise PydanticCustomError("one_twice", "hold a value twice: leave one of them out")
        return scales
