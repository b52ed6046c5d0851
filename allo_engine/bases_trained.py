"""What the settings of several stages that train have in common, in a module of its own: what is added here is no part
of the code of stages that train nothing (see source.py). Free of torch.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from allo_engine.bases import Count, Epochs, Moments, Positive, PromptConfig, Ratio, RowsConfig, Weight

Train = Literal["all", "mask"]
Zero = Literal["auto", 0, 1, 2, 3]
PairLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
"""The losses of TRL's DPOTrainer, by its own names. The engine's own loop has the first."""


class TrainingConfig(RowsConfig):
    """What every stage that trains has. A batch is counted in items: responses, pairs or negatives."""

    train: Train = Field(
        default="all",
        description="'all' trains every weight, in 16 bytes each; 'mask' trains the weights of a mask, which are all "
        "that is held in float32, beside the model in the precision that it computes in.",
    )
    learning_rate: Positive = 1e-6
    batch_size: Count = Field(default=32, description="Items an optimizer step.")
    n_epochs: Epochs = 1
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="Share of steps over which the rate rises.")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: Positive = 1.0
    weight_decay: float = Field(default=0.0, ge=0, le=1e9)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: Positive = 1e-8
    moments: Moments = Field(
        default="float32",
        description="What AdamW keeps of its two moments: '8bit' is a quarter as much, rounded in blocks of 256 "
        "(arXiv 2110.02861), by bitsandbytes, which must be installed.",
    )
    zero: Zero = Field(
        default="auto",
        description="Over several devices: what they share out among them instead of holding it each (ZeRO; under "
        "train 'all' by DeepSpeed, which must be installed). 1: moments; 2: also gradients; 3: also weights; 0: "
        "nothing. 'auto': the least that fits. Under train 'mask' moments and gradients are few and stay whole: there "
        "3 shares out the frozen weights, 'auto' where they do not fit whole. Of no effect on the result, or on one "
        "device.",
    )
    offload: bool = Field(
        default=False,
        description="Under zero 1, 2 or 3: moments stand in the machine's memory and the optimizer runs there, slower.",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto",
        description="Compute activations twice instead of keeping them: a third slower, far leaner. 'auto': where the "
        "longest item, or rows of a sensible length, would not fit otherwise.",
    )
    checkpoint_seconds: Positive = Field(default=60.0, description="Seconds between checkpoints for resuming.")
    validation_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The share of prompts, by content, that is not trained on: what the stage makes of them says which "
        "checkpoint is best.",
    )
    evaluate_every: Ratio = Field(default=0.25, description="The share of an epoch from one validation to the next.")
    keep: Literal["best", "last"] = Field(
        default="best", description="Which checkpoint is the result, where a share is held out for validation."
    )
    patience: Count | None = Field(
        default=None,
        description="So many validations in a row that are no better than the best end the training; null: none do.",
    )

    average: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Above 1 the result is the uniform mean of so many last checkpoints, those behind each "
        "evaluate_every of an epoch (LAWA, arXiv 2306.03241). Where a share is held out and keep is 'best', it is that "
        "only where its loss there is less than the best checkpoint's.",
    )

    @field_validator("average")
    @classmethod
    def _are_there(cls, average: int, info: ValidationInfo) -> int:
        epochs, every = (info.data.get(name) for name in ("n_epochs", "evaluate_every"))
        if epochs and every and average > 1 and average > math.ceil(epochs / every):
            raise PydanticCustomError(
                "too_few_checkpoints",
                "is more than there are checkpoints, {there}: lower it or evaluate_every, or raise n_epochs",
                {"there": math.ceil(epochs / every)},
            )
        return average

    @field_validator("zero")
    @classmethod
    def _shares_out_float32(cls, zero: Zero, info: ValidationInfo) -> Zero:
        if zero not in ("auto", 0) and info.data.get("best_by") == "accuracy":
            raise PydanticCustomError(
                "answers_whole",
                "devices that share out a model let it answer nothing: set best_by to 'loss', or zero to 0",
            )
        dense = info.data.get("train") == "all"
        if dense and zero not in ("auto", 0) and info.data.get("moments") == "8bit":
            raise PydanticCustomError(
                "zero_is_float32", "moments in 8 bits are not shared out: set zero to 0 or 'auto'"
            )
        return zero


class LocatedConfig(TrainingConfig):
    """What a stage has that trains in a mask of `locate`."""

    train: Train = Field(
        default="mask",
        description="'mask' trains the weights that were located for this stage; 'all' trains every weight, a control.",
    )


class OwnMaskConfig(TrainingConfig):
    """What a stage has that comes before the masks of `locate`: under train 'mask' it locates a mask of its own."""

    mask_ratio: Ratio = Field(
        default=0.05,
        description="Under train 'mask': the share of all weights that is trained, those where the gradient of the "
        "stage's own loss over its own data is largest at its start.",
    )


class AnsweringConfig(PromptConfig):
    """What every stage has that leaves a model which answers better than the one that it started from."""

    best_by: Literal["loss", "accuracy"] = Field(
        default="loss",
        description="What says which checkpoint is best on what validation_share holds out. 'accuracy' is what "
        "evaluate calls so: the share of problems that are answered rightly, greedily, where answers are known (sft on "
        "problems, a job that samples problems); of uploaded pairs the implicit reward's. Of equals the loss decides.",
    )


class PairLossConfig(AnsweringConfig):
    """What every stage has that trains on pairs."""

    beta: Positive = Field(
        default=0.1,
        description="How much leaving the reference costs: a pair stops pushing once its log-ratios, summed over "
        "tokens, differ by some 1 / beta nats. Of short verified answers 3 gained where 0.1 lost "
        "(tests/benchmarks/study). Of 'ipo', its tau.",
    )
    nll: Weight = Field(
        default=0.0,
        description="Weight of the chosen response's negative log-likelihood, its mean over tokens, beside the "
        "preference loss, which alone may make both responses less likely. The default is 1 (arXiv 2404.19733: GSM8K "
        "61.8 to 73.1) where a job samples problems and this stage makes its aligned model; 0 for uploaded pairs and "
        "by trainer 'trl', whose mean is over the tokens of all chosen responses of a pass.",
    )
    dpop: Weight = Field(
        default=0.0,
        description="DPOP's lambda (arXiv 2402.13228, which takes 50): what the chosen response's log-probability has "
        "fallen below the reference's counts against the pair so many times more. For pairs that differ in few tokens.",
    )


class BaselineConfig(OwnMaskConfig):
    """What a stage has that everybody has, too: it may be trained by everybody's trainer."""

    trainer: Literal["allo", "trl"] = Field(
        default="allo",
        description="'allo' is the engine's own loop; 'trl' has TRL's SFTTrainer or DPOTrainer do it, with the same "
        "token ids, order and rates: the baseline that others have. It trains all weights, pads, and is slower.",
    )

    @field_validator("trainer")
    @classmethod
    def _as_trl_can(cls, trainer: str, info: ValidationInfo) -> str:
        if trainer == "trl" and info.data.get("train") == "mask":
            raise PydanticCustomError("trl_is_dense", "'trl' trains every weight: set train to 'all', or leave it out")
        if trainer == "trl" and info.data.get("validation_share"):
            raise PydanticCustomError("trl_holds_nothing_out", "'trl' trains on everything: leave validation_share out")
        if trainer == "trl" and info.data.get("average", 1) > 1:
            raise PydanticCustomError("trl_leaves_the_last", "'trl' leaves its last step: leave average out")
        return trainer
