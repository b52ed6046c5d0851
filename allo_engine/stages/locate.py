"""Locating: I(D, θ_i) ≈ |θ'_i − θ_i| / α of the warm-up's update; the global top r of all weights.

α is one number for all weights and changes no order, so it is left out. Δ is taken against the very float32 weights
that the warm-up started from. Both masks come from the same pass; the smaller ratio's mask lies within the larger's.
Beside the masks, where.json says how many weights of each tensor they take.
"""

from __future__ import annotations

import json
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
from allo_engine.selection import Bits, Importance, overlap, pack, select, thresholds


def run(config: LocateConfig, inputs: Inputs, outputs: Path, work: Path, report: Report) -> dict[str, float]:  # noqa: ARG001
    def stream() -> Iterator[tuple[str, Importance]]:
        for number, (name, update) in enumerate(updates(inputs["model"], inputs["updated"])):
            yield name, importance_of(update, config, number)

    ratios = {"forget": config.forget_ratio, "improve": config.improve_ratio}
    try:
        total, found = thresholds(stream, ratios.values())
    except ValueError as error:
        raise StageError("diverged", f"The warm-up's {error}: lower warmup.learning_rate.") from error
    left = dict(zip(ratios, found, strict=True))
    masks: dict[str, dict[str, Bits]] = {use: {} for use in ratios}
    where: dict[str, dict[str, int]] = {}
    for name, importance in stream():
        where[name] = {"weights": len(importance)}
        for use in ratios:
            mask, left[use] = select(importance, left[use])
            masks[use][name] = pack(mask)
            where[name][use] = int(mask.sum())
    (outputs / "masks").mkdir(parents=True, exist_ok=True)
    for use, bits in masks.items():
        save_file(bits, outputs / "masks" / f"{use}.safetensors")
    (outputs / "masks" / "where.json").write_text(json.dumps(where, indent=2))
    report.progress(1, 1)
    counts = {f"{use}_selected": sum(row[use] for row in where.values()) for use in ratios}
    shared = sum(overlap(masks["forget"][name], masks["improve"][name]) for name in where)
    return {"weights": total, **counts, "overlap": shared / min(counts.values())}


def importance_of(update: Importance, config: LocateConfig, number: int) -> Importance:
    """How much a tensor's weights count, from how far they moved; `number` is the tensor's place among all."""
    if config.importance == "least":  # the complement of the bit pattern turns the order of non-negative floats around
        return (np.int32(0x7F7FFFFF) - update.view(np.int32)).view(np.float32)
    if config.importance == "random":
        return np.random.Generator(np.random.Philox(key=[config.seed, number])).random(len(update), dtype=np.float32)
    return update


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
