"""AdamW, with its moments in float32 or in 8 bits, and the learning rate of each of its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from allo_engine.bases_trained import TrainingConfig
from allo_engine.report import StageError


def optimizer_of(parameters: Iterable[nn.Parameter], config: TrainingConfig, device_type: str) -> torch.optim.Optimizer:
    """Raises StageError where the library that keeps moments in 8 bits is not installed."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    if config.moments == "8bit":
        return _eight_bit()(parameters, **settings)
    return torch.optim.AdamW(parameters, fused=device_type in ("cpu", "cuda"), **settings)


def _eight_bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit  # here: it takes two seconds, and few stages want it
    except ImportError:
        raise StageError(
            "bad_config", "moments '8bit' needs bitsandbytes: pip install 'allo[eight-bit]', or leave moments out."
        ) from None
    return AdamW8bit


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of a step, the first being 0: a linear rise over the warm-up, then the schedule down to 0."""
    rise = math.ceil(config.warmup_ratio * steps)
    if step < rise:
        return config.learning_rate * (step + 1) / (rise + 1)
    done = (step - rise) / max(1, steps - rise)
    shape = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * shape[config.schedule]
