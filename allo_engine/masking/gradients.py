"""The gradient of a stage's loss over all its data at its start model, without moments and without dense .grad buffers.

Of cross-entropy over responses that is ∇(−Σlogπ). Of DPO over pairs, the reference is the model itself: every log-ratio
is 0, σ(0) = ½, and the gradient of a pair's loss −logσ(β(Σd_chosen − Σd_rejected)) is
(β/2)·∇(Σlogπ_rejected − Σlogπ_chosen). β/2, and what a mean is divided by, are one number for all weights and change no
order, so they are left out, and no reference is computed. What stands beside the DPO loss, a mean negative
log-likelihood, then counts 2/β times as much.

The sums are float32, four bytes a weight. Where they would take most of an accelerator's free memory they stand in the
machine's: each weight's gradient goes there as soon as the backward pass has it, so that the device holds the weights,
a row, and the largest weight's gradient. An addition of float32 is the same on either side.

Of several ranks each sums over its share of the rows, and their sums are added up. That is another order of the same
additions: a sum may differ in its last bits from that of one rank, and so may, of two weights whose gradients are equal
up to that, which of them a mask takes. All ranks have the same sums.

Where the ranks share out the model (model/sharing.py), each sums what it holds of every weight. A row's gradients go to
those that sum them as soon as a layer has its own; in the end all stand in one file, which every rank maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from allo_engine.bases import RowsConfig
from allo_engine.checkpoints.names import text_weights
from allo_engine.checkpoints.parts import local_of, part_of
from allo_engine.model.ahead import ahead
from allo_engine.model.logps import token_logps
from allo_engine.model.memory import Kind, available_bytes
from allo_engine.model.rows import RowBudget, fitting_tokens
from allo_engine.model.sequences import Group, build_row, rows_of
from allo_engine.model.sharing import Rows, evenly
from allo_engine.ranks import here
from allo_engine.report import Report, Tick

SUM_BYTES = 4
"""A weight's sum, in float32."""

AT_ONCE = 1 << 22
"""Entries that are added at once: on a CPU, 16 bits are copied to 32 for that."""


def fitted_gradients(
    model: PreTrainedModel | Rows,
    folder: Path,
    groups: Sequence[Group],
    config: RowsConfig,
    work: Path,
    report: Report,
    tick: Tick,
    nll: float = 0.0,
) -> dict[str, Tensor]:
    """`summed_gradients` over all ranks' rows, which are as long as memory allows; `folder` is the model's."""
    where, zero = summing_device(model), 3 if isinstance(model, Rows) else 0
    kind: Kind = "gradient" if where.type == next(model.parameters()).device.type else "gradient_on_host"
    tokens = fitting_tokens(config, folder, kind, loaded=model, zero=zero)
    rows = RowBudget(tokens, work, report, again=not zero)
    sums = rows.fit(lambda budget: summed_gradients(model, groups, budget, tick, where, nll), groups)
    if isinstance(model, Rows):
        return _joined(sums, text_weights(model.model), work)
    here().total(list(sums.values()))
    return sums


def summing_device(model: nn.Module) -> torch.device:
    """Where every rank's sums for its loaded model stand: beside it while half of what is free there is left for rows,
    on each of them.
    """
    held = [local_of(weight) for weight in model.parameters()]
    where = held[0].device
    lack = where.type != "cpu" and 2 * SUM_BYTES * sum(map(Tensor.numel, held)) > available_bytes(where.type)
    return torch.device("cpu") if here().any(lack) else where


def _joined(parts: Mapping[str, Tensor], weights: Mapping[str, Tensor], work: Path) -> dict[str, Tensor]:
    """The sums of all ranks' parts. They stand in a file that nobody finds: it goes when no rank maps it any more."""
    path, found, offset = here().firsts(work) / "sums.tmp", {}, 0
    work.mkdir(parents=True, exist_ok=True)
    here().barrier()
    size = sum(weight.numel() for weight in weights.values())
    every = torch.from_file(str(path), shared=True, size=size)
    for name, weight in weights.items():
        part, first = parts[name].view(-1), offset + part_of(weight)[1]
        every[first : first + len(part)] = part.cpu()
        found[name] = every[offset : offset + weight.numel()].view(weight.shape)
        offset += weight.numel()
    here().barrier()
    path.unlink(missing_ok=True)
    return found


def summed_gradients(
    model: PreTrainedModel | Rows,
    groups: Sequence[Group],
    budget: int,
    tick: Tick,
    where: torch.device | None = None,
    nll: float = 0.0,
) -> dict[str, Tensor]:
    """Σ over all items (chosen, rejected) of ∇(Σlogπ_rejected − Σlogπ_chosen), float32 by the weight's name; and of
    `nll` times the chosen response's −Σlogπ / T.

    The item (chosen,) of a single response has nothing rejected.

    Rows hold at most `budget` tokens, and of several ranks each sums over its share of them; `tick` is told of each
    row's when it is done. A weight's gradient is added up and freed as soon as the backward pass has it. The sums stand
    on the device `where`, else beside the model. Tied weights are one weight. Of a model that the ranks share out, each
    has the sums over all rows for what it holds.
    """
    plain = model.model if isinstance(model, Rows) else model
    weights = text_weights(plain)
    sums = {
        name: torch.zeros_like(local_of(weight), dtype=torch.float32, device=where or weight.device)
        for name, weight in weights.items()
    }
    with ExitStack() as hooks:
        for name, weight in weights.items():
            hooks.enter_context(weight.register_post_accumulate_grad_hook(_into(sums[name])))
        own = here().share(rows_of(groups, budget), lambda row: sum(group.tokens() for group in row))
        rows = ahead((row_groups, build_row(row_groups, plain.device)) for row_groups in own)
        hooks.enter_context(closing(rows))
        for row_groups, row in evenly(rows, model) if isinstance(model, Rows) else rows:
            logps_R = model(row) if isinstance(model, Rows) else token_logps(model, row)
            loss = _loss(row_groups, row.split(logps_R), nll)
            (here().size * loss if isinstance(model, Rows) else loss).backward()  # they are averaged over the ranks
            tick(sum(group.tokens() for group in row_groups))
    return sums


def _loss(groups: Sequence[Group], logps: Mapping[tuple[int, int], Tensor], nll: float) -> Tensor:
    sums = {place: values.sum() for place, values in logps.items()}
    terms = []
    for at, group in enumerate(groups):
        for chosen, *rejected in group.items:
            terms += [-(1 + nll / len(logps[at, chosen])) * sums[at, chosen], *(sums[at, index] for index in rejected)]
    return torch.stack(terms).sum()


def _into(total: Tensor) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        assert weight.grad is not None  # the hook is called when it is there
        found = local_of(weight.grad).flatten()
        for into, part in zip(total.view(-1).split(AT_ONCE), found.split(AT_ONCE), strict=True):
            into.add_(part.to(total.device))
        weight.grad = None

    return add
