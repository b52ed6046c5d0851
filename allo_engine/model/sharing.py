"""A model whose weights are shared out over the ranks, each of which holds a part of every weight.

By torch's FSDP2 (`fully_shard`): a decoder layer at a time, and all that is in no layer as one more. What a rank holds
is a run of rows of each weight; before a layer's forward pass, and again before its backward pass, all ranks gather the
whole of it, and behind it they let it go. Why not by DeepSpeed's ZeRO-3, which dense stages have: it shares out what it
trains, wants an optimizer of its own around it, and must be installed. Here nothing is trained but the masked entries,
which every rank keeps whole (`whole`), and FSDP leaves these and their gradients alone.

What was found in FSDP2 of torch 2.13, and is held by tests:

- It finds a weight by its module and its name there, so a parametrization's `original` is shared out as any other;
  weights that are tied, or a module that is used twice, are one.
- What is in no layer is gathered for the outermost module that runs, which must be the one that all of a row goes
  through: our head reads its weight outside of any module's forward pass.
- Every pass of a row gathers, and so must every rank's: see `evenly`.
- It may be made before there are weights; they are filled in part by part, and no rank ever holds the model.
- Gradients of what is trained are averaged over the ranks, which exchange those of the same weights only when told so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from allo_engine.checkpoints.delta import Values, write_into
from allo_engine.checkpoints.names import Names
from allo_engine.checkpoints.parts import fill
from allo_engine.model.freed import let_freed_memory_go
from allo_engine.model.loading import device
from allo_engine.model.logps import token_logps
from allo_engine.model.sequences import Row, build_row, singles
from allo_engine.ranks import here

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

Item = TypeVar("Item")


class Rows(nn.Module):
    """The whole way of a row to its log-probabilities, as one module."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, row: Row) -> Tensor:
        return token_logps(self.model, row)

    def let_go(self) -> None:
        """Behind a forward pass that no backward pass follows: what is in no layer is still gathered, for that. What is
        written into the weights while they are is lost.
        """
        cast("FSDPModule", self).reshard()


def in_parts(
    model: PreTrainedModel, folder: Path, names: Names, over: Values, whole: Collection[nn.Parameter] = ()
) -> Rows:
    """A model without weights (`empty_model`) over all ranks, with those of the folder's checkpoint and the stored
    entries `over` on top; each rank keeps the parameters `whole` for itself.
    """
    from torch.distributed.device_mesh import init_device_mesh  # here: few stages share out
    from torch.distributed.fsdp import fully_shard

    if device().type == "cpu":
        let_freed_memory_go()
    mesh = init_device_mesh(device().type, (here().size,))
    kept = {*whole, *(weight for weight in model.parameters() if not weight.ndim)}
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, ignored_params=kept)
    rows = Rows(model)
    fully_shard(rows, mesh=mesh, ignored_params=kept).set_reduce_scatter_unused_params(True)
    _make_parts(rows)
    fill(model, folder, names)
    write_into(model, over.items(), names)
    return rows


def _layers(model: nn.Module) -> list[nn.Module]:
    """Those that gradient checkpointing takes for layers, none within another."""
    found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inner = {part for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if layer not in inner]


def _make_parts(rows: nn.Module) -> None:
    """Give a weight that has no memory what this rank holds of it, in zeros; tied ones share it."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in rows.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.device.type == "meta":
                if weight not in made:
                    made[weight] = nn.Parameter(_zeros(weight), weight.requires_grad)
                module.register_parameter(name, made[weight])


def _zeros(weight: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    if not isinstance(weight, DTensor):
        return torch.zeros_like(weight, device=device())
    part = torch.zeros_like(weight.to_local(), device=device())
    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride(), run_check=False
    )


class Reading:
    """Takes rows through a model that is shared out as `way`, where no backward pass follows."""

    def __init__(self, way: Rows) -> None:
        self._way = way

    def even(self, rows: Iterator[Item]) -> Iterator[Item]:
        return evenly(rows, self.logps)

    def logps(self, row: Row) -> Tensor:
        logps_R: Tensor = self._way(row)
        self._way.let_go()
        return logps_R


def evenly(
    rows: Iterator[Item],
    logps: Callable[[Row], Tensor],
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Iterator[Item]:
    """This rank's rows and then, while others have some, the shortest one there is, for nothing: of weights that are
    shared out every rank gathers its part for each pass of every other.
    """
    ranks = here()
    nothing = build_row([singles(0, [0], [[0]])], device())
    more = torch.ones((), device=device())
    while True:
        row = next(rows, None)
        ranks.total([more.fill_(row is not None)])
        if not more.item():
            return
        if row is not None:
            yield row
            continue
        logps_R = logps(nothing)
        if torch.is_grad_enabled():
            backward(0 * logps_R.sum())
