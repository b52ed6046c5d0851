"""What the settings of several stages have in common: see `configs`, which has the stages, and `bases_trained` for what
those have that train. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Ratio = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Precision = Literal["auto", "float32", "bfloat16"]
Moments = Literal["float32", "8bit"]
Devices = Literal["auto"] | Annotated[int, Field(ge=1, le=64)]
Backend = Literal["auto", "transformers", "vllm"]


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
