"""Models and tokenizers from a folder of safetensors, on the device that is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from allo_engine.bases import Precision
from allo_engine.checkpoints.names import Names, buffers_of, names_of
from allo_engine.checkpoints.parts import read_into
from allo_engine.checkpoints.reading import Checkpoint, StoredTensor
from allo_engine.checkpoints.writing import rewrite
from allo_engine.model.attention import NAME
from allo_engine.model.probe import verdict


def device() -> torch.device:
    """The accelerator that is there, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def dtype_of(precision: Precision) -> torch.dtype:
    """What a stage computes in. "auto" is bfloat16 on an accelerator that has it, else float32."""
    if precision == "auto":
        return torch.bfloat16 if device().type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def packs(folder: Path) -> bool:
    """Whether rows of a folder's model may hold many sequences; else it reads one at a time."""
    return verdict(AutoConfig.from_pretrained(folder, local_files_only=True)).packs


def load_model(folder: Path, dtype: torch.dtype = torch.float32, where: torch.device | None = None) -> PreTrainedModel:
    """A causal language model in evaluation mode: without dropout, a step is a function of its batch alone.

    Where a probe finds that its rows may be packed, it attends as attention.py has it; else it is left as it is and
    reads one sequence a row.
    """
    model = plain_model(folder, dtype, where)
    if verdict(model.config).packs:
        model.set_attn_implementation(NAME)
    return model


def plain_model(folder: Path, dtype: torch.dtype = torch.float32, where: torch.device | None = None) -> PreTrainedModel:
    """The same as transformers has it. Its weights go straight to the device, or to `where` they are wanted."""
    where = where or device()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map=None if where.type == "cpu" else where,
        local_files_only=True,
        use_safetensors=True,
    )
    return model.eval()  # type: ignore[no-untyped-call,no-any-return]


def empty_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """What `load_model` makes, with its buffers but without its weights, which take no memory yet."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.tie_weights()  # which were made one by one
    wide = model._keep_in_fp32_modules_strict or ()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if any(part in name for part in wide):
            tensor.data = tensor.float()
    buffers = dict(model.named_buffers())
    with Checkpoint(folder) as stored:
        for name, place in buffers_of(model, folder).items():
            read_into(buffers[place.weight].view(-1), 0, place, stored.tensors[name])
    if verdict(model.config).packs:
        model.set_attn_implementation(NAME)
    return model.eval()  # type: ignore[no-untyped-call,no-any-return]


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing: layers keep their inputs alone and run again for the backward pass."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # of the layer itself, which asks for it
            module.forward = _without_dropout(module)


def _without_dropout(layer: nn.Module) -> Callable[..., Any]:
    """The layer's forward pass, within which it is in evaluation mode: some, such as OPT's, drop out by themselves."""
    forward = layer.forward

    @wraps(forward)
    def evaluated(*given: Any, **named: Any) -> Any:
        before, layer.training = layer.training, False
        try:
            return forward(*given, **named)
        finally:
            layer.training = before

    return evaluated


def save_model(model: PreTrainedModel, base: Path, folder: Path) -> None:
    """A checkpoint of a model that was loaded from `base`: see save_weights."""
    save_weights(dict(model.named_parameters()).__getitem__, names_of(model, base), base, folder)


def save_weights(weights: Callable[[str], Tensor], names: Names, base: Path, folder: Path) -> None:
    """A checkpoint that plain transformers loads: all that `base` stores, as it names it, with a model's weights.

    In float32, the precision that they were trained in. Each is asked for once, and let go when it is written.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run into the same folder

    def contents(name: str, stored: StoredTensor) -> StoredTensor | _Trained:
        place = names.place(name)
        return stored if place is None else _Trained(place.view(weights(place.weight)).reshape(-1))

    rewrite(base, folder, "F32", contents)


@dataclass(frozen=True)
class _Trained:
    """A weight as it is in a model, in the order in which it is stored."""

    flat: Tensor

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self.flat[start : start + count].to("cpu", torch.float32).numpy()
        return found
