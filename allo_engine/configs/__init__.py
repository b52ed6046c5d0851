"""The settings of the stages: a module a stage, so that what one has is no part of the code of another (see source.py).

Free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from allo_engine.bases import StageConfig


def config_of(stage: str) -> type[StageConfig]:
    """The class of a stage's settings, loading no other's: RewardModelConfig of reward_model."""
    name = f"{stage.title().replace('_', '')}Config"
    return cast(type[StageConfig], getattr(import_module(f"{__name__}.{stage}"), name))
