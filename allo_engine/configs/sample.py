"""The settings of stage sample. Free of torch."""

from __future__ import annotations

from pydantic import Field

from allo_engine.bases import Count, DecodingConfig, Ratio


class SampleConfig(DecodingConfig):
    """n responses a problem, a seed per request."""

    skip_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="The share of the file that is not sampled: the very problems that an sft.share as large is of, in "
        "this job or another. The default is the job's sft.share, and 0 where that is 1.",
    )
    rounds: int = Field(
        default=1,
        ge=1,
        le=16,
        description="How often the job samples, pairs and trains on the pairs (improve; of method dpo warmup), each "
        "time from the model that the time before made, which is its reference too, with fresh samples (arXiv "
        "2404.19733: GSM8K 73.1, 78.0, 81.1 in three rounds).",
    )
    n: Count = Field(default=10, le=10_000, description="Responses a problem.")
    temperature: float = Field(default=0.7, ge=0, le=10)
    top_p: Ratio = 0.95
