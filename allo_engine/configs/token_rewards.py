"""The settings of stage token_rewards. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allo_engine.bases import RowsConfig


class TokenRewardsConfig(RowsConfig):
    """The probability that the rewriter keeps each token of a wrong response."""

    source: Literal["reward_model", "log_ratio"] = Field(
        default="reward_model",
        description="'reward_model' trains the rewriter; 'log_ratio' reads the warm-up model against the start "
        "model and needs neither rewriter nor solutions.",
    )
