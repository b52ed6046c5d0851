"""What alignment changed, as a low-rank adapter in PEFT's format: an approximation.

For every linear layer ΔW = W_aligned − W_base ≈ B·A of rank r, by truncated SVD ΔW = U·S·Vᵀ: B = U_r·√S_r,
A = √S_r·V_rᵀ, with lora_alpha = r, so that PEFT's factor alpha/r is 1. What else changed (embeddings, norms, biases) is
left out. `kept` is the share of ‖ΔW‖² that is in it, over all weights: 1 would be the aligned model itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from allo_engine.checkpoints.names import skeleton
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor
from allo_engine.exports.checking import Figures, difference, of_folder, outputs
from allo_engine.model.loading import plain_model
from allo_engine.report import StageError

_MORE = 16
"""Ranks that the randomised SVD looks at beyond those that are kept."""


def export(folder: Path, base: Path, out: Path, rank: int) -> Figures:
    """Writes adapter_config.json and adapter_model.safetensors into `out`. Raises StageError `refused` where the two
    models do not have the same weights.

    Read back by PEFT itself, on top of the base, its logits are compared with the aligned model's.
    """
    kept, changed = 0.0, 0.0
    adapter: dict[str, Tensor] = {}
    for module, delta in _changes(folder, base):
        size = float(delta.square().sum())
        changed += size
        if module is not None:
            up, down = factors(delta, rank)
            adapter[f"base_model.model.{module}.lora_B.weight"] = up
            adapter[f"base_model.model.{module}.lora_A.weight"] = down
            kept += size - float((delta - up @ down).square().sum())
    if not adapter:
        raise StageError("refused", "No linear layer differs from the base: there is nothing for an adapter to hold.")
    save_file(adapter, out / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = sorted({name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in adapter})
    (out / "adapter_config.json").write_text(json.dumps(_config(modules, rank), indent=2), encoding="utf-8")
    return {"logits": _read_back(folder, base, out), "rank": rank, "kept": kept / changed}


def factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [rows, rank] and A [rank, columns], filled up with zeros where the matrix has fewer ranks."""
    torch.manual_seed(0)  # the SVD is randomised: the same adapter every time
    most = min(delta.shape)
    left, sizes, right = torch.svd_lowrank(delta, q=min(rank + _MORE, most), niter=4)
    roots = sizes[:rank].sqrt()
    up, down = left[:, :rank] * roots, (right[:, :rank] * roots).T
    missing = rank - len(roots)
    return nn.functional.pad(up, (0, missing)).contiguous(), nn.functional.pad(down, (0, 0, 0, missing)).contiguous()


def _changes(folder: Path, base: Path) -> Iterator[tuple[str | None, Tensor]]:
    """Of each stored weight that differs the linear layer whose matrix it is, or None, and by how much."""
    linear = {f"{name}.weight": name for name, part in skeleton(base).named_modules() if isinstance(part, nn.Linear)}
    with Checkpoint(folder) as aligned, Checkpoint(base) as started:
        for name, stored in aligned.tensors.items():
            before = started.tensors.get(name)
            if before is None or before.shape != stored.shape:
                raise StageError("refused", f"The base has no weight {name} of the same shape.")
            delta = _values(stored) - _values(before)
            if np.any(delta):
                module = linear.get(name) if len(stored.shape) == 2 else None
                yield module, torch.from_numpy(delta.reshape(stored.shape))


def _values(stored: StoredTensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return stored.read(0, stored.size)


def _config(modules: list[str], rank: int) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": modules,
    }


def _read_back(folder: Path, base: Path, adapter: Path) -> dict[str, float]:
    from peft import PeftModel  # here: all else of this file does without

    wanted = of_folder(folder)
    adapted = PeftModel.from_pretrained(plain_model(base, where=torch.device("cpu")), str(adapter))
    return difference(wanted, outputs(adapted, wanted.ids).logits)
