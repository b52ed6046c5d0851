"""The settings of every stage: one frozen model a stage, free of torch.

The API validates a job's `method.<type>.stages.<stage>` with these very classes, and the engine runs with them, so
that a setting is either refused before the job starts or means what it says. Defaults are the published ones
(arXiv 2406.12606 and its code) unless the description says otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from allo_engine.bases import (
    Backend,
    BaselineConfig,
    Count,
    DecodingConfig,
    Devices,
    Epochs,
    LocatedConfig,
    Moments,
    OwnMaskConfig,
    PairLoss,
    PairLossConfig,
    Positive,
    Precision,
    PromptConfig,
    Ratio,
    RowsConfig,
    Share,
    StageConfig,
    Train,
    TrainingConfig,
    Weight,
    Zero,
)
from allo_engine.decoded import EvaluateConfig, SampleConfig
from allo_engine.harness import HARNESS_TASKS, Harness
from allo_engine.teacher import TEACHER_KEY, Judge, Teacher

__all__ = [
    "CONFIGS",
    "HARNESS_TASKS",
    "TEACHER_KEY",
    "Backend",
    "BaselineConfig",
    "DecodingConfig",
    "Devices",
    "EvaluateConfig",
    "ForgetConfig",
    "Harness",
    "ImproveConfig",
    "Judge",
    "LocateConfig",
    "Moments",
    "OwnMaskConfig",
    "PairConfig",
    "PairLoss",
    "PairLossConfig",
    "Precision",
    "PromptConfig",
    "RewardModelConfig",
    "RowsConfig",
    "SampleConfig",
    "SftConfig",
    "StageConfig",
    "Teacher",
    "TokenRewardsConfig",
    "Train",
    "TrainingConfig",
    "WarmupConfig",
    "Zero",
]


class SftConfig(BaselineConfig):
    """Cross-entropy on response tokens: the model that alignment starts from."""

    learning_rate: Positive = 2e-5
    batch_size: Count = 128
    n_epochs: Epochs = 3
    share: Ratio = Field(
        default=1.0,
        description="The share of the file that is learned from, by the content of its lines, whatever their order and "
        "number. Where the job samples the file afterwards the default is 0.5, and sample.skip_share has sampling take "
        "the rest: pairs of problems that SFT has not seen align better (arXiv 2604.13515).",
    )


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


class LocateConfig(RowsConfig):
    """The weights that alignment moves most: exact global top-k, nested ratios from one pass."""

    importance: Literal["update", "gradient", "least", "random"] = Field(
        default="update",
        description="'update' is the paper's, by the warm-up; 'gradient' that of the DPO loss at the start model; "
        "'random' takes any, by the seed, and wants a larger learning rate the smaller its share is (arXiv 2405.02596; "
        "1 % matched full training in 2602.01599). These two need no warm-up. 'least' takes the weights that moved "
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


class RewardModelConfig(OwnMaskConfig):
    """SFT on the rewriting task: problem, solution, wrong response → corrected response."""

    model: str | None = Field(
        default=None,
        description="The registered model that becomes the rewriter, a smaller one of the same vocabulary; null: the "
        "model that the job aligns.",
    )
    corrections: Teacher | None = Field(
        default=None,
        description="Who writes the corrections: {base_url, model} of an OpenAI-compatible endpoint; null: each wrong "
        "response's correction is the right response nearest to it.",
    )

    learning_rate: Positive = 2e-5
    batch_size: Count = 128
    n_epochs: Epochs = 3
    max_negatives: Count = Field(default=10, description="Rewriting examples a problem.")
    max_problems: Count | None = Field(
        default=None, description="Problems to learn from, drawn by the seed; null: all."
    )


class TokenRewardsConfig(RowsConfig):
    """The probability that the rewriter keeps each token of a wrong response."""

    source: Literal["reward_model", "log_ratio"] = Field(
        default="reward_model",
        description="'reward_model' trains the rewriter; 'log_ratio' reads the warm-up model against the start "
        "model and needs neither rewriter nor solutions.",
    )


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
        description="Several scales, of which the result has the one whose loss is least on what validation_share "
        "holds out; null: scale is as given. One job tries them all; a sweep of scale is a job a value.",
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


CONFIGS: dict[str, type[StageConfig]] = {
    "sft": SftConfig,
    "sample": SampleConfig,
    "pair": PairConfig,
    "warmup": WarmupConfig,
    "locate": LocateConfig,
    "reward_model": RewardModelConfig,
    "token_rewards": TokenRewardsConfig,
    "forget": ForgetConfig,
    "improve": ImproveConfig,
    "evaluate": EvaluateConfig,
}
