"""One rank of a training under ZeRO whose last rank has a small device: python -m tests.scale.short ROOT RANK SIZE ZERO

What it was told is left in ROOT/told.RANK.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from allo_engine.config import SftConfig
from allo_engine.forks import leave
from allo_engine.launching import Place, joined
from allo_engine.model.rows import RowBudget
from allo_engine.report import Report
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import CrossEntropy
from tests.scale.sharded import Case, groups, model_of
from tests.unit.engine.training.test_gradients_of_ranks import SmallDevice

LONG, SHORT = 64, 32
"""Tokens of a row that the small device does not hold, and of one that it does."""


def train(root: Path, rank: int, size: int, zero: int, report: Report) -> None:
    model, work = model_of(Case("short")), root / "work" / str(rank)
    if rank == size - 1:
        model.model.__class__ = SmallDevice
    rows = RowBudget(LONG, work, report, again=False)
    config = SftConfig(learning_rate=1e-3, batch_size=100, n_epochs=2)
    Trainer(model, dict(model.named_parameters()), config, report, work, rows, zero=zero).train(
        groups(), CrossEntropy()
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, (rank, size, zero) = Path(sys.argv[1]), map(int, sys.argv[2:])
    with (root / f"told.{rank}").open("w") as told:
        report = Report(told)
        with joined(Place(rank, size, root / "meeting"), report):
            train(root, rank, size, zero, report)
    leave(0)
