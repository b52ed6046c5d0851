"""The settings of all stages, for who must know them all: one frozen model a stage, each in its module of `configs`,
what several have in common in `bases`. Free of torch.

The API validates a job's `method.<type>.stages.<stage>` with these very classes, and the engine runs with them, so
that a setting is either refused before the job starts or means what it says. Defaults are the published ones
(arXiv 2406.12606 and its code) unless the description says otherwise.
"""

from __future__ import annotations

from allo_engine.bases import (
    Backend,
    DecodingConfig,
    Devices,
    Moments,
    Precision,
    PromptConfig,
    RowsConfig,
    StageConfig,
)
from allo_engine.bases_trained import (
    BaselineConfig,
    OwnMaskConfig,
    PairLoss,
    PairLossConfig,
    Train,
    TrainingConfig,
    Zero,
)
from allo_engine.configs.evaluate import EvaluateConfig
from allo_engine.configs.forget import ForgetConfig
from allo_engine.configs.improve import ImproveConfig
from allo_engine.configs.locate import LocateConfig
from allo_engine.configs.pair import PairConfig
from allo_engine.configs.reward_model import RewardModelConfig
from allo_engine.configs.sample import SampleConfig
from allo_engine.configs.sft import SftConfig
from allo_engine.configs.token_rewards import TokenRewardsConfig
from allo_engine.configs.warmup import WarmupConfig
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
