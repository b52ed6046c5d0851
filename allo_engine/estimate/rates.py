"""How fast a machine is: the figures that calibration.py measures and prices are made with. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from allo_engine.model.shape import Shape
from allo_engine.needs import known

TRAINING = 3
"""A training pass is so many forward passes' work: the backward pass makes two products for each of the forward's."""


@dataclass(frozen=True)
class Calibration:
    """A machine's rates a second; `layer_seconds` is what a layer costs however little it computes."""

    forward_flops: float
    training_flops: float
    decoding_flops: float
    decoding_bytes: float
    layer_seconds: float
    optimizer_weights: float
    write_bytes: float
    hash_bytes: float

    @classmethod
    def read(cls, written: Mapping[str, Any] | None) -> Calibration | None:
        """Rates that were written here or in another version; None where there are none that can be used."""
        found = known(cls, written or {})
        sound = all(isinstance(rate, float) and 0 < rate < math.inf for rate in found.values())
        return cls(**found) if sound and len(found) == len(fields(cls)) else None


def flops(shape: Shape, tokens: float, attended: float, scored: float) -> float:
    """A forward pass's floating point operations: every weight twice a token, attention on `attended` pairs of a query
    and a key, the head on scored positions alone. The embedding is looked up.
    """
    head = shape.vocabulary * shape.hidden
    body = shape.weights - head * (1 if shape.tied else 2)
    attention = 4 * shape.heads * shape.head_size * shape.layers
    return 2 * body * tokens + attention * attended + 2 * head * scored


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What this machine's processor is called."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
