"""The settings of stage evaluate. Free of torch."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from allo_engine.bases import Count, DecodingConfig, Positive, Ratio, RowsConfig
from allo_engine.harness import Harness
from allo_engine.teacher import Judge


class EvaluateConfig(RowsConfig, DecodingConfig):
    """Greedy accuracy, pass@k and likeliest options on held-out problems; implicit rewards on held-out pairs."""

    beta: Positive = 0.1
    examples: int = Field(default=2, ge=0, le=100, description="Sample answers kept in the report.")
    samples: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Responses drawn a problem, beside the greedy one, to estimate pass@k from (arXiv 2107.03374, eq. "
        "1); 0: none.",
    )
    k: tuple[Count, ...] | None = Field(
        default=None,
        max_length=16,
        description="The k of pass@k, none above samples; null: those of 1, 4 and 8 that are not.",
    )
    temperature: float = Field(default=0.7, ge=0, le=10, description="Of the samples.")
    top_p: Ratio = Field(default=0.95, description="Of the samples.")
    options: bool = Field(
        default=True,
        description="Where problems list their options, below a line 'Options:' or lettered: also which of them the "
        "model finds the likeliest, by log p(option | prompt, option_prefix), whole and a character.",
    )
    option_prefix: str = Field(
        default="The answer is", max_length=1000, description="What a response says before its option."
    )
    judge: Judge | None = Field(
        default=None,
        description="Who compares the greedy answers of two models to held-out problems, each pair in both orders: "
        "{base_url, model} of an OpenAI-compatible endpoint; null: nobody.",
    )
    harness: Harness | None = Field(
        default=None,
        description="Tasks of lm-evaluation-harness that every model is put to: {tasks} by their names in the "
        "worker's folder of tasks; null: none.",
    )

    @field_validator("k")
    @classmethod
    def _of_the_samples(cls, k: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        samples = info.data.get("samples", max(k or (0,)))
        if k and max(k) > samples:
            raise PydanticCustomError(
                "needs_samples", "holds a k above samples: raise samples, or leave it out", {"samples": samples}
            )
        return k

    def of_retention(self) -> EvaluateConfig:
        """The same for a second held-out file: greedy answers do."""
        return self.model_copy(update={"samples": 0, "k": None, "judge": None, "harness": None})

    def ks(self) -> tuple[int, ...]:
        """The k of pass@k, in order."""
        return tuple(sorted(set(self.k if self.k is not None else (k for k in (1, 4, 8) if k <= self.samples))))
