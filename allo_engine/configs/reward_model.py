"""The settings of stage reward_model. Free of torch."""

from __future__ import annotations

from pydantic import Field

from allo_engine.bases import Count, Epochs, Positive
from allo_engine.bases_trained import OwnMaskConfig
from allo_engine.teacher import Teacher


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
