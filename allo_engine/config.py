"""The settings of every stage: one frozen model a stage, free of torch.

The API validates a job's `method.<type>.stages.<stage>` with these very classes, and the engine runs with them, so
that a setting is either refused before the job starts or means what it says. Defaults are the published ones
(arXiv 2406.12606 and its code) unless the description says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Ratio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Precision = Literal["auto", "float32", "bfloat16"]
Train = Literal["all", "mask"]
Moments = Literal["float32", "8bit"]
Zero = Literal["auto", 0, 1, 2, 3]
Devices = Literal["auto"] | Annotated[int, Field(ge=1, le=64)]
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
Backend = Literal["auto", "transformers", "vllm"]


TEACHER_KEY = "ALLO_TEACHER_API_KEY"
"""The variable of the worker's environment that holds the key of a corrections' teacher."""


class StageConfig(BaseModel):
    """What every stage has: a seed. Everything random in a stage is a function of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything random in the stage.")


class PromptConfig(StageConfig):
    """What every stage that runs a model on text has."""

    template: str = Field(
        default="auto",
        description="How a problem becomes a prompt: 'auto' (the model's chat template, else 'alpaca'), 'chat', "
        "'alpaca', or a text that holds {problem}.",
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict,
        description='Arguments of the chat template, such as {"enable_thinking": true}. A template that knows '
        "enable_thinking gets false unless this says otherwise.",
    )
    max_prompt_tokens: Tokens = Field(default=1024, description="Longer prompts are dropped and counted.")
    max_response_tokens: Tokens = Field(default=1024, description="Longer responses are dropped and counted.")
    precision: Precision = Field(
        default="auto",
        description="What the model computes in: 'auto' is bfloat16 on a GPU and float32 on a CPU. Trained values, "
        "moments and log-probabilities are float32 in any case.",
    )
    devices: Devices = Field(
        default="auto",
        description="Processes that run the stage as one, each on a device of its own: 'auto' takes every GPU that "
        "the stage sees, and on a CPU one process. Results are those of one process, up to the order of float32 sums.",
    )


class DecodingConfig(PromptConfig):
    """What every stage has that lets a model answer."""

    decoding_batch: Count = Field(
        default=64,
        description="Responses decoded at once, fewer where memory is too small; never changes what is drawn.",
    )
    backend: Backend = Field(
        default="auto",
        description="What decodes: 'transformers', or 'vllm', which must be installed on the worker; 'auto' is vllm "
        "where it is installed, the device is a GPU and it can serve the model. Each is repeatable, and the two draw "
        "different responses above temperature 0.",
    )


class RowsConfig(PromptConfig):
    """What every stage has that packs sequences into rows."""

    micro_batch_tokens: Tokens | None = Field(
        default=None,
        description="Tokens of one forward pass: bounds memory and never changes the result. null: as many as fit.",
    )
    memory_gb: Positive | None = Field(
        default=None, description="Memory, in GiB, that the micro-batch is fitted to. null: what is free at the start."
    )


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

    @field_validator("zero")
    @classmethod
    def _shares_out_float32(cls, zero: Zero, info: ValidationInfo) -> Zero:
        dense = info.data.get("train") == "all"
        if dense and zero not in ("auto", 0) and info.data.get("moments") == "8bit":
            raise PydanticCustomError(
                "zero_is_float32", "moments in 8 bits are not shared out: set zero to 0 or 'auto'"
            )
        return zero


class OwnMaskConfig(TrainingConfig):
    """What a stage has that comes before the masks of `locate`: under train 'mask' it locates a mask of its own."""

    mask_ratio: Ratio = Field(
        default=0.05,
        description="Under train 'mask': the share of all weights that is trained, those where the gradient of the "
        "stage's own loss over its own data is largest at its start.",
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
        return trainer


class SftConfig(BaselineConfig):
    """Cross-entropy on response tokens: the model that alignment starts from."""

    learning_rate: Positive = 2e-5
    batch_size: Count = 128
    n_epochs: Epochs = 3


class SampleConfig(DecodingConfig):
    """n responses a problem, a seed per request."""

    n: Count = Field(default=10, le=10_000, description="Responses a problem.")
    temperature: float = Field(default=0.7, ge=0, le=10)
    top_p: Ratio = 0.95


class PairConfig(StageConfig):
    """Right responses against wrong ones."""

    max_pairs: Count = Field(default=5, description="Pairs a problem.")
    max_negatives: Count = Field(default=10, description="Distinct wrong responses a problem to forget.")


class WarmupConfig(BaselineConfig):
    """Vanilla DPO over all weights unless told otherwise: it shows which weights alignment moves."""

    beta: Positive = Field(default=0.1, description="How much leaving the reference costs; of 'ipo', its tau.")
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
        description="'update' is the paper's, by the warm-up; 'gradient' that of the DPO loss at the start model and "
        "needs no warm-up; 'least' takes the weights that moved least and 'random' any: controls.",
    )
    forget_ratio: Ratio = 0.05
    improve_ratio: Ratio = 0.05


class Teacher(BaseModel):
    """A model behind an OpenAI-compatible endpoint, asked at <base_url>/chat/completions.

    Its key is the worker's variable ALLO_TEACHER_API_KEY and stands in no setting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    base_url: str = Field(
        pattern=r"^https?://[^/@\s?#]+(/[^@\s?#]*)?$",
        description="As OpenAI's client takes it, 'https://api.openai.com/v1'; the service's operator says which hosts "
        "may be asked.",
    )
    model: str = Field(min_length=1, description="The model's name there.")
    max_tokens: Tokens | None = Field(default=None, description="Tokens of an answer; null: as the endpoint has it.")
    concurrency: int = Field(default=8, ge=1, le=64, description="Questions that are asked at once.")
    timeout_seconds: Positive = Field(default=120.0, description="For how long an answer is waited for.")


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


class ForgetConfig(TrainingConfig):
    """Token-weighted NPO on wrong responses, in the mask."""

    train: Train = Field(
        default="mask",
        description="'mask' trains the weights that were located for this stage; 'all' trains every weight, a control.",
    )

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


class ImproveConfig(TrainingConfig):
    """Token-filtered DPO on pairs, in the mask."""

    train: Train = Field(
        default="mask",
        description="'mask' trains the weights that were located for this stage; 'all' trains every weight, a control.",
    )

    learning_rate: Positive = 5e-6
    batch_size: Count = 128
    beta: Positive = 0.1
    filter: Literal["rejected", "both"] = Field(
        default="rejected",
        description="'rejected' filters the rejected response's tokens, the paper's; 'both' also the chosen one's.",
    )
    filter_ratio: Ratio = Field(
        default=0.1, description="Share of filtered tokens, lowest log-ratio first, that count."
    )


class EvaluateConfig(RowsConfig, DecodingConfig):
    """Greedy accuracy on held-out problems; implicit-reward accuracy and margin on held-out pairs."""

    beta: Positive = 0.1
    examples: int = Field(default=2, ge=0, le=100, description="Sample answers kept in the report.")


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
