"""What a training keeps whose weights DeepSpeed shares out: read and written whole, by any number of processes.

Found in DeepSpeed 0.19.8, and held by tests: `safe_set_full_optimizer_state` of stage 3 fails for weights that do not
divide among the processes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from allo_engine.ranks import here
from allo_engine.report import StageError
from allo_engine.training.resuming import LazyTensor, Weight

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight beside the number of its steps."""


class ZeroState:
    """The state of parameters and their AdamW under a ZeRO optimizer of DeepSpeed's, in any of its stages."""

    def __init__(self, zero: Any, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
        self._zero, self._adamw, self._parameters, self._ranks = zero, optimizer, dict(parameters), here()
        self._whole = not any(hasattr(parameter, "ds_tensor") for parameter in parameters.values())
        self._begin_moments()

    @contextmanager
    def weights(self) -> Iterator[Weight | None]:
        """For the first rank, all weights as they are now; nothing for the others, which help until it is done."""
        if self._ranks.leads:
            yield lambda name: self._gathered(self._ranks.firsts(name))
            self._ranks.firsts("")
        else:
            while name := self._ranks.firsts(""):
                self._gathered(name)
            yield None

    def _gathered(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        if self._whole:
            return parameter.detach()
        found: Tensor = deepspeed().utils.safe_get_full_fp32_param(parameter)
        return found

    def tensors(self) -> Iterator[LazyTensor]:
        """As a process that holds all of it names it."""
        steps = next(iter(self._adamw.state.values()))["step"]
        for name, parameter in self._parameters.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            yield LazyTensor(f"values/{name}", torch.float32, shape, partial(self._gathered, name))
            yield LazyTensor(f"step/{name}", torch.float32, (), lambda: steps)
            for key in MOMENTS:
                moment = partial(deepspeed().utils.safe_get_full_optimizer_state, parameter, key)
                yield LazyTensor(f"{key}/{name}", torch.float32, shape, moment)

    @torch.no_grad()
    def restore(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        for place, tensor in tensors:
            key, _, name = place.partition("/")
            parameter = self._parameters[name]
            if key == "values":
                with self._writable(parameter):
                    parameter.copy_(tensor)
            elif key == "step":
                for state in self._adamw.state.values():
                    state["step"].copy_(tensor)
            else:
                self._set_moment(parameter, tensor, key)
        self._zero.refresh_fp32_params()

    def _writable(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Within, a weight is whole; what the first rank writes into it remains."""
        if self._whole:
            return nullcontext()
        found: AbstractContextManager[Any] = deepspeed().zero.GatheredParameters([parameter], modifier_rank=0)
        return found

    def _set_moment(self, parameter: nn.Parameter, tensor: Tensor, key: str) -> None:
        utils = deepspeed().utils
        if self._whole:
            utils.safe_set_full_optimizer_state(parameter, tensor, key)
        else:
            utils.safe_set_local_optimizer_state(parameter, self._own_part(parameter, tensor), key)

    def _own_part(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """What this process holds of a tensor in stage 3: an equal part, the last ones filled up with zeros."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # DeepSpeed's
        part = tensor.new_zeros(size)
        own = tensor.flatten()[self._ranks.rank * size :][:size]
        part[: len(own)] = own
        return part

    def _begin_moments(self) -> None:
        """AdamW makes its moments at the first step; here they are there before, so that any step may be left out."""
        flats = self._zero.single_partition_of_fp32_groups if self._whole else self._zero.fp32_partitioned_groups_flat
        for flat in flats:
            state = self._adamw.state[flat]
            state["step"] = torch.zeros((), device=flat.device)
            state |= {key: torch.zeros_like(flat) for key in MOMENTS}
        if self._whole:
            self._zero._lazy_init_hp_params_optimizer_state()


def deepspeed() -> Any:
    """Raises StageError where DeepSpeed is not installed."""
    if find_spec("deepspeed") is None:
        raise StageError(
            "bad_config",
            "ZeRO shares a dense stage out over devices with DeepSpeed, which is not installed: pip install "
            "'allo[scale]', or set zero to 0, train to 'mask', or devices to 1.",
        )
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", str(torch.cuda.current_device() if torch.cuda.is_available() else 0))
    import deepspeed  # here: it takes seconds, and few stages want it

    # On a CPU it would have a compiler make a way to exchange tensors that training does not go.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed
