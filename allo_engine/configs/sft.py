"""The settings of stage sft. Free of torch."""

from __future__ import annotations

from pydantic import Field

from allo_engine.bases import Count, Epochs, Positive, Ratio
from allo_engine.bases_trained import AnsweringConfig, BaselineConfig


class SftConfig(BaselineConfig, AnsweringConfig):
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
