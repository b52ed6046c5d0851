"""Locating: I(D, θ_i) ≈ |θ'_i − θ_i| / α of the warm-up's update; the global top r of all weights.

α is one number for all weights and changes no order, so it is left out. Δ is taken against the very float32 weights
that the warm-up started from. Both masks come from the same pass; the smaller ratio's mask lies within the larger's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from allo_engine.config import LocateConfig
from allo_engine.models import weight_files
from allo_engine.reading import Inputs
from allo_engine.report import Report, StageError
from allo_engine.selection import Bits, Importance, pack, select, thresholds


def run(config: LocateConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:  # noqa: ARG001
    ratios = {"forget": config.forget_ratio, "improve": config.improve_ratio}

    def stream() -> Iterator[tuple[str, Importance]]:
        return updates(inputs["model"], inputs["updated"])

    try:
        total, found = thresholds(stream, ratios.values())
    except ValueError as error:
        raise StageError("diverged", f"The warm-up's {error}: lower warmup.learning_rate.") from error
    left = dict(zip(ratios, found, strict=True))
    masks: dict[str, dict[str, Bits]] = {use: {} for use in ratios}
    selected = dict.fromkeys(ratios, 0)
    for name, importance in stream():
        for use in ratios:
            mask, left[use] = select(importance, left[use])
            masks[use][name] = pack(mask)
            selected[use] += int(mask.sum())
    for use, bits in masks.items():
        (outputs / "masks").mkdir(parents=True, exist_ok=True)
        save_file(bits, outputs / "masks" / f"{use}.safetensors", metadata={"selected": str(selected[use])})
    report.progress(1, 1)
    figures = {f"{use}_selected": count for use, count in selected.items()}
    return {"weights": total, **figures, "overlap": min(selected.values()) / max(selected.values())}


def updates(before: Path, after: Path) -> Iterator[tuple[str, Importance]]:
    """|θ' − θ| of every weight, flat float32, tensor by tensor."""
    files = dict(weight_files(after))
    for name, path in weight_files(before):
        if name not in files:
            raise StageError("wrong_base", f"The warm-up's checkpoint has no weight {name}: it is of another model.")
        old, new = _tensor(path, name), _tensor(files[name], name)
        yield name, np.abs(new.reshape(-1) - old.reshape(-1))


def _tensor(path: Path, name: str) -> Importance:
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor.float().numpy()
