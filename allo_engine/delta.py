"""The sparse checkpoint: the masked entries' values, their places, and the sha256 of the weights they belong to.

One safetensors file: `<weight>/values` float32 [K] and `<weight>/mask`, a bit a weight. Values are absolute, not
differences, so that merging gives the very same bits as training did.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from allo_engine.masks import Positions
from allo_engine.report import StageError
from allo_engine.selection import pack, positions

FILE = "delta.safetensors"


def save_delta(model: nn.Module, places: Positions, base: str, folder: Path) -> None:
    """Write a model's values at the given flat positions, by the weight's name; `base` is its base's fingerprint."""
    weights = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for name, selected in places.items():
        if len(selected):
            flat = weights[name].detach().reshape(-1)
            mask = np.zeros(len(flat), dtype=np.bool_)
            mask[selected] = True
            tensors[f"{name}/mask"] = torch.from_numpy(pack(mask))
            tensors[f"{name}/values"] = flat[torch.from_numpy(selected).to(flat.device)].float().cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / FILE, metadata={"base": base})


@torch.no_grad()
def apply_delta(model: nn.Module, folder: Path, base: str) -> None:
    """Write a delta's values into the weights of its base model, whose fingerprint is `base`.

    Raises StageError where the delta belongs to other weights.
    """
    weights = dict(model.named_parameters())
    with safe_open(folder / FILE, framework="pt") as file:
        if file.metadata().get("base") != base:
            raise StageError("wrong_base", "The sparse checkpoint belongs to another base model than the one given.")
        names = [key.removesuffix("/values") for key in file.keys() if key.endswith("/values")]  # noqa: SIM118
        for name in names:
            flat = weights[name].view(-1)
            places = torch.from_numpy(positions(file.get_tensor(f"{name}/mask").numpy(), len(flat)))
            flat[places.to(flat.device)] = file.get_tensor(f"{name}/values").to(flat.device, flat.dtype)
