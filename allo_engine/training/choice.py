"""What several devices share out of a stage's model instead of holding it each: a setting, or the least that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from allo_engine.bases_trained import TrainingConfig
from allo_engine.model.loading import packs
from allo_engine.model.memory import Kind, least_zero
from allo_engine.model.rows import LONGEST_ROW, SENSIBLE_ROW, free_bytes, use_of
from allo_engine.model.shape import shape_of
from allo_engine.ranks import here
from allo_engine.report import Report


def stage_of(config: TrainingConfig, folder: Path, report: Report, ratio: float = 1.0) -> int:
    """The stage of ZeRO in which a stage trains a folder's model here. Moments in 8 bits are never shared out.

    Of a masked stage, which trains the share `ratio`, only what is frozen is worth it: 3, or 0.
    """
    masked = config.train == "mask"
    asked = 0 if masked and config.zero in (1, 2) else config.zero
    if here().size == 1:
        if asked not in ("auto", 0) or (config.offload and not masked):
            report.message(_ALONE_MASKED if masked else _ALONE, "warn")
        return 0
    if masked and asked != 0 and not packs(folder):
        if asked == 3:
            report.message(_ONE_BY_ONE, "warn")
        return 0
    if asked != "auto" or (config.moments == "8bit" and not masked):
        return 0 if asked == "auto" else asked
    zero = _least(config, folder, "sparse" if masked else "dense", ratio)
    if zero:
        what = "The model with what trains in its mask" if masked else "What trains all weights"
        report.message(
            f"{what} does not fit a device: {here().size} share it out, zero is {zero}.", data={"zero": zero}
        )
    return zero


def _least(config: TrainingConfig, folder: Path, kind: Kind, ratio: float) -> int:
    ranks = here()
    try:
        shape = shape_of(folder)
    except KeyError:  # a model whose sizes have other names
        return 0
    use = replace(use_of(config, kind, ratio), packs=packs(folder), devices=ranks.size)
    budget = ranks.least(free_bytes(config, use.device_type, None))
    tokens = config.micro_batch_tokens or min(SENSIBLE_ROW, LONGEST_ROW.get(use.device_type, SENSIBLE_ROW))
    return least_zero(shape, use, budget, tokens)


_ALONE = (
    "zero and offload have no effect on one device: raise devices, or where memory is short set train to 'mask' or "
    "moments to '8bit'."
)

_ALONE_MASKED = "zero has no effect on one device: raise devices."

_ONE_BY_ONE = (
    "zero has no effect: this model reads one sequence at a time, and frozen weights are shared out only where rows "
    "hold many."
)
