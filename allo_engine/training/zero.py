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

What is kept of it is in zero_state.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allo_engine.bases_trained import TrainingConfig
from allo_engine.model.loading import device, dtype_of
from allo_engine.model.memory import ZERO_BUCKET
from allo_engine.model.sequences import Row
from allo_engine.model.sharing import Rows, evenly
from allo_engine.training.descent import everyones, finite
from allo_engine.training.figures import Readings, Totals
from allo_engine.training.zero_state import ZeroState, deepspeed

Item = TypeVar("Item")


class Sharded(ZeroState):
    """A model in training whose `parameters` DeepSpeed shares out over all ranks, in stage 1, 2 or 3 of ZeRO."""

    def __init__(
        self, model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], config: TrainingConfig, stage: int
    ) -> None:
        settings = zero_settings(parameters, config, stage) | {
            "train_micro_batch_size_per_gpu": 1,  # it wants a number; our batches are no business of its
            "managed_gradient_accumulation": False,  # a step is when we say so, however many rows it had
        }
        shared_out(model, parameters, settings)
        self._optimizer = _Asked(
            parameters.values(),
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._engine, *_ = deepspeed().initialize(
            model=_Rows(model, dtype_of(config.precision)),
            optimizer=self._optimizer,
            config=settings,
            dist_init_required=False,
        )
        super().__init__(self._engine.optimizer, self._optimizer, parameters)

    def even(self, rows: Iterator[Item]) -> Iterator[Item]:
        return evenly(rows, self.logps, self.backward)

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


class _Rows(Rows):
    """What DeepSpeed runs.

    Autocast keeps no rounded weights for a later product: each is used once in a row, and in stage 3 they would stand
    there whole.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        super().__init__(model)
        self._dtype = dtype

    def forward(self, row: Row) -> Tensor:
        narrow = self._dtype != torch.float32
        with torch.autocast(self.model.device.type, self._dtype, enabled=narrow, cache_enabled=False):
            return super().forward(row)


class _Asked(torch.optim.AdamW):
    """AdamW that steps where it is `asked` to. DeepSpeed does around a step what has to be done in any case."""

    asked = True

    def step(self, closure: Any = None) -> Any:
        return super().step(closure) if self.asked else None


def zero_settings(parameters: Mapping[str, nn.Parameter], config: TrainingConfig, stage: int) -> dict[str, Any]:
    """DeepSpeed's. What is in no matrix (norms, biases) stays whole in stage 3: it is little, and asked for often."""
    pinned = torch.cuda.is_available()
    vectors = max([parameter.numel() for parameter in parameters.values() if parameter.ndim < 2], default=0)
    return {
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


def shared_out(model: PreTrainedModel, parameters: Mapping[str, nn.Parameter], settings: Mapping[str, Any]) -> None:
    """Have a model train its `parameters` alone and, in stage 3, hold this process's part of them: weight by weight, so
    that no device ever holds the model.
    """
    trained = {id(parameter) for parameter in parameters.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    library = deepspeed()
    if settings["zero_optimization"]["stage"] == 3:
        library.zero.Init(module=model, config_dict_or_path=dict(settings))
        for buffer in model.buffers():
            buffer.data = buffer.to(device())
