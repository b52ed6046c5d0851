"""How many tokens a row may have: a setting, or what memory allows; and fewer where memory proves too small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from allo_engine.config import TrainingConfig
from allo_engine.model.loading import device, dtype_of
from allo_engine.model.memory import SMALLEST_ROW, Kind, available_bytes, row_tokens, shape_of
from allo_engine.report import Report

Result = TypeVar("Result")

LONGEST_ROW = {"cpu": 512}
LONGEST_ROW_ELSEWHERE = 16384
"""Longer rows gain nothing: on a CPU the matrix products are at their full speed long before."""


def fitting_tokens(config: TrainingConfig, folder: Path, kind: Kind, ratio: float = 1.0) -> int:
    """The longest row that the model in a folder can train on in the memory that is free; not yet loaded."""
    if config.micro_batch_tokens is not None:
        return config.micro_batch_tokens
    where = device().type
    longest = LONGEST_ROW.get(where, LONGEST_ROW_ELSEWHERE)
    budget = available_bytes(where) if config.memory_gb is None else round(config.memory_gb * 2**30)
    try:
        shape = shape_of(folder)
    except KeyError:  # a model whose sizes have other names: rows shrink as soon as one does not fit
        return longest
    weight_bytes = dtype_of(config.precision).itemsize if kind == "sparse" else 4
    return min(longest, row_tokens(shape, kind, ratio, weight_bytes, budget, config.gradient_checkpointing, where))


class RowBudget:
    """The tokens of a row, kept in the work folder: a resumed run cuts its rows as the first one did."""

    def __init__(self, tokens: int, work: Path, report: Report) -> None:
        self._kept, self._report = work / "micro_batch_tokens", report
        self.tokens = int(self._kept.read_text()) if self._kept.exists() else self._keep(tokens)

    def _keep(self, tokens: int) -> int:
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        self._kept.with_suffix(".tmp").write_text(str(tokens))
        self._kept.with_suffix(".tmp").replace(self._kept)
        return tokens

    def fit(self, work: Callable[[int], Result], undo: Callable[[], None] = lambda: None) -> Result:
        """Do work with rows of at most so many tokens, fewer from now on where the device's memory was too small."""
        while True:
            try:
                return work(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.tokens <= SMALLEST_ROW:
                    raise
            undo()
            self.tokens = self._keep(self.tokens // 2)
            self._report.message(
                f"The device's memory was full: going on with micro_batch_tokens = {self.tokens}.",
                "warn",
                {"micro_batch_tokens": self.tokens},
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the machine had too little memory; on a CPU torch has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
