"""The settings of stage warmup. Free of torch."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from allo_engine.bases_trained import BaselineConfig, PairLoss, PairLossConfig


class WarmupConfig(BaselineConfig, PairLossConfig):
    """Vanilla DPO over all weights unless told otherwise: it shows which weights alignment moves."""

    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="The share of pairs that are taken to be the wrong way round, for trainer 'trl': 'robust' and the "
        "'aot' losses take it, 'exo_pair' needs it (its paper: 0.001).",
    )
    loss: PairLoss = Field(
        default="sigmoid",
        description="'sigmoid' is DPO's; any other of TRL's DPOTrainer is for trainer 'trl', which has them all.",
    )

    @field_validator("trainer")
    @classmethod
    def _as_trl_has_it(cls, trainer: str, info: ValidationInfo) -> str:
        if trainer == "trl" and info.data.get("dpop"):
            raise PydanticCustomError("trl_has_no_dpop", "'trl' has no dpop: set trainer to 'allo', or leave dpop out")
        return trainer

    @field_validator("label_smoothing", "loss")
    @classmethod
    def _for_trl(cls, value: float | str, info: ValidationInfo) -> float | str:
        if info.data.get("trainer") == "allo" and value not in (0.0, "sigmoid"):
            raise PydanticCustomError("needs_trl", "is for TRL alone: set trainer to 'trl', or leave it out")
        return value

    @field_validator("loss")
    @classmethod
    def _smoothed(cls, loss: str, info: ValidationInfo) -> str:
        if loss == "exo_pair" and info.data.get("label_smoothing") == 0:
            raise PydanticCustomError("needs_smoothing", "'exo_pair' needs label_smoothing above 0, such as 0.001")
        return loss
