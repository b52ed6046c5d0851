"""Dense stages over several processes whose moments, gradients and weights are shared out by DeepSpeed.

ZeRO (arXiv 1910.02054): stage 1 shares out AdamW's moments, stage 2 the gradient too, stage 3 the weights as well.
Weights stay float32 and compute as in our own loop: under autocast, where a stage computes in 16 bits. DeepSpeed's own
bfloat16 mode is never on, as it would round trained values to 16 bits.

What was found in DeepSpeed 0.19.8, and is held by tests:

- Autocast that is entered outside the engine is turned off inside it, so it is entered in the module that it runs.
- Gradients are averaged over processes. Our loss is divided by the whole batch's weight, so it is multiplied by their
  number.
- From stage 2 on every backward pass exchanges gradients, and in stage 3 every forward pass gathers weights: all
  processes go through equally many rows, of which some may count for nothing.
- Stage 3 gathers what a module's forward pass reads of another module's weights (our head does) for the outermost
  module that it runs, which must therefore be the one that all of the row goes through.
- A gradient that is not finite is dropped in all stages, and its norm is then infinite.
- `safe_set_full_optimizer_state` of stage 3 fails for weights that do not divide among the processes.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allo_engine.config import TrainingConfig
from allo_engine.model.loading import device, dtype_of, packs
from allo_engine.model.logps import token_logps
from allo_engine.model.memory import ZERO_BUCKET, least_zero
from allo_engine.model.rows import LONGEST_ROW, SENSIBLE_ROW, free_bytes, use_of
from allo_engine.model.sequences import Row, build_row, singles
from allo_engine.model.shape import shape_of
from allo_engine.ranks import here
from allo_engine.report import Report, StageError
from allo_engine.training.descent import Weight, everyones, finite
from allo_engine.training.figures import Readings, Totals
from allo_engine.training.resuming import LazyTensor

Item = TypeVar("Item")

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight beside the number of its steps."""


class Sharded:
    """A model in training whose `parameters` DeepSpeed shares out over all ranks, in stage 1, 2 or 3 of ZeRO."""

    def __init__(
        self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], config: TrainingConfig, stage: int
    ) -> None:
        self._model, self._parameters, self._ranks = model, dict(parameters), here()
        self._whole = stage < 3
        trained = {id(parameter) for parameter in parameters.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        settings, deepspeed = _settings(parameters, config, stage), _deepspeed()
        if stage == 3:  # weight by weight: no device ever holds the model
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
            for buffer in model.buffers():
                buffer.data = buffer.to(device())
        self._optimizer = _Asked(
            self._parameters.values(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(
            model=_Rows(model, dtype_of(config.precision)),
            optimizer=self._optimizer,
            config=settings,
            dist_init_required=False,
        )
        self._begin_moments()

    def even(self, rows: Iterator[Item]) -> Iterator[Item]:
        """Its own rows and then, while others have some, the shortest one there is, for nothing."""
        nothing = build_row([singles(0, [0], [[0]])], device())
        more = torch.ones((), device=device())
        while True:
            row = next(rows, None)
            self._ranks.total([more.fill_(row is not None)])
            if not more.item():
                return
            if row is not None:
                yield row
                continue
            logps_R = self.logps(nothing)
            if torch.is_grad_enabled():
                self.backward(0 * logps_R.sum())

    def logps(self, row: Row) -> Tensor:
        logps_R: Tensor = self._engine(row)
        return logps_R

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self._ranks.size)

    def step(self, rate: float, readings: Readings) -> tuple[Totals, float] | None:
        found = everyones(readings.read())
        for settings in self._optimizer.param_groups:
            settings["lr"] = rate
        self._optimizer.asked = math.isfinite(found.means()["loss"])
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return (found, norm) if finite(found, norm) else None

    def forget(self) -> None:
        """Never: what was exchanged with the others cannot be taken back. Whoever fails ends the attempt."""

    @contextmanager
    def weights(self) -> Iterator[Weight | None]:
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
        found: Tensor = _deepspeed().utils.safe_get_full_fp32_param(parameter)
        return found

    def tensors(self) -> Iterator[LazyTensor]:
        """As a process that holds all of it names it."""
        steps = next(iter(self._optimizer.state.values()))["step"]
        for name, parameter in self._parameters.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            yield LazyTensor(f"values/{name}", torch.float32, shape, partial(self._gathered, name))
            yield LazyTensor(f"step/{name}", torch.float32, (), lambda: steps)
            for key in MOMENTS:
                moment = partial(_deepspeed().utils.safe_get_full_optimizer_state, parameter, key)
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
                for state in self._optimizer.state.values():
                    state["step"].copy_(tensor)
            else:
                self._set_moment(parameter, tensor, key)
        self._engine.optimizer.refresh_fp32_params()

    def _writable(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Within, a weight is whole; what the first rank writes into it remains."""
        if self._whole:
            return nullcontext()
        found: AbstractContextManager[Any] = _deepspeed().zero.GatheredParameters([parameter], modifier_rank=0)
        return found

    def _set_moment(self, parameter: nn.Parameter, tensor: Tensor, key: str) -> None:
        utils = _deepspeed().utils
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
        zero = self._engine.optimizer
        flats = zero.single_partition_of_fp32_groups if self._whole else zero.fp32_partitioned_groups_flat
        for flat in flats:
            state = self._optimizer.state[flat]
            state["step"] = torch.zeros((), device=flat.device)
            state |= {key: torch.zeros_like(flat) for key in MOMENTS}
        if self._whole:
            zero._lazy_init_hp_params_optimizer_state()


class _Rows(nn.Module):
    """What DeepSpeed runs: the whole way of a row to its log-probabilities.

    Autocast keeps no rounded weights for a later product: each is used once in a row, and in stage 3 they would stand
    there whole.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self._dtype = model, dtype

    def forward(self, row: Row) -> Tensor:
        narrow = self._dtype != torch.float32
        with torch.autocast(self.model.device.type, self._dtype, enabled=narrow, cache_enabled=False):
            return token_logps(self.model, row)


class _Asked(torch.optim.AdamW):
    """AdamW that steps where it is `asked` to. DeepSpeed does around a step what has to be done in any case."""

    asked = True

    def step(self, closure: Any = None) -> Any:
        return super().step(closure) if self.asked else None


def stage_of(config: TrainingConfig, folder: Path, report: Report) -> int:
    """The stage of ZeRO in which a dense stage trains a folder's model here. Moments in 8 bits are never shared out."""
    ranks = here()
    if ranks.size == 1:
        if config.zero not in ("auto", 0) or config.offload:
            report.message(
                "zero and offload have no effect on one device: raise devices, or where memory is short set train to "
                "'mask' or moments to '8bit'.",
                "warn",
            )
        return 0
    if config.zero != "auto" or config.moments == "8bit":
        return 0 if config.zero == "auto" else config.zero
    try:
        shape = shape_of(folder)
    except KeyError:  # a model whose sizes have other names
        return 0
    use = replace(use_of(config, "dense"), packs=packs(folder), devices=ranks.size)
    budget = ranks.least(free_bytes(config, use.device_type, None))
    tokens = config.micro_batch_tokens or min(SENSIBLE_ROW, LONGEST_ROW.get(use.device_type, SENSIBLE_ROW))
    zero = least_zero(shape, use, budget, tokens)
    if zero:
        report.message(
            f"What trains all weights does not fit a device: {ranks.size} share it out, zero is {zero}.",
            data={"zero": zero},
        )
    return zero


def _settings(parameters: Mapping[str, nn.Parameter], config: TrainingConfig, stage: int) -> dict[str, Any]:
    """DeepSpeed's. What is in no matrix (norms, biases) stays whole in stage 3: it is little, and asked for often."""
    pinned = torch.cuda.is_available()
    vectors = max([parameter.numel() for parameter in parameters.values() if parameter.ndim < 2], default=0)
    return {
        "train_micro_batch_size_per_gpu": 1,  # it wants a number; our batches are no business of its
        "managed_gradient_accumulation": False,  # a step is when we say so, however many rows it had
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": ZERO_BUCKET,
            "allgather_bucket_size": ZERO_BUCKET,
            "overlap_comm": False,
            "stage3_prefetch_bucket_size": ZERO_BUCKET,
            "stage3_max_live_parameters": ZERO_BUCKET,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": vectors,
            "memory_efficient_linear": False,
            **({"offload_optimizer": {"device": "cpu", "pin_memory": pinned}} if config.offload else {}),
        },
    }


def _deepspeed() -> Any:
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
