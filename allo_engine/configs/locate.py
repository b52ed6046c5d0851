"""The settings of stage locate. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from allo_engine.bases import Ratio, RowsConfig


class LocateConfig(RowsConfig):
    """The weights that alignment moves most: exact global top-k, nested ratios from one pass."""

    importance: Literal["update", "gradient", "least", "random"] = Field(
        default="update",
        description="'update' is the paper's, by the warm-up; 'gradient' that of the DPO loss at the start model; "
        "'random' takes any, by the seed, and wants a larger learning rate the smaller its share is (arXiv 2405.02596; "
        "1 % matched full training in 2602.01599): improve.learning_rate is then 5e-5 by default. These two need no "
        "warm-up. 'least' takes the weights that moved "
        "least: a control.",
    )
    forget_ratio: Ratio = 0.05
    improve_ratio: Ratio = 0.05
    later_rounds: Literal["same", "fresh"] = Field(
        default="same",
        description="Where sample.rounds are several, 'same' has all of them train in the masks of the first; 'fresh' "
        "has each locate its own, in the model that it starts from and on its own pairs: with a warm-up a round where "
        "importance is by its update.",
    )
