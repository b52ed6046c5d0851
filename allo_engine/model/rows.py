"""How many tokens a row may have: a setting, or what memory allows; and fewer where memory proves too small."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch

from allo_engine.config import TrainingConfig
from allo_engine.model.loading import device, dtype_of
from allo_engine.model.memory import SMALLEST_ROW, Kind, available_bytes, row_tokens, shape_of
from allo_engine.model.sequences import Group
from allo_engine.report import Report, StageError

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

    def fit(
        self, work: Callable[[int], Result], groups: Iterable[Group], undo: Callable[[], None] = lambda: None
    ) -> Result:
        """Do work with rows of at most so many tokens, fewer from now on where the device's memory was too small.

        Rows of `groups` are never made shorter than their longest item, which cannot be cut. Raises StageError
        "out_of_memory" where that alone does not fit.
        """
        while True:
            try:
                return work(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            undo()
            give_back_freed_memory()
            longest = max((group.only([item]).tokens() for group in groups for item in group.items), default=0)
            if self.tokens <= max(longest, SMALLEST_ROW):
                raise StageError("out_of_memory", _TOO_LONG.format(longest))
            self.tokens = self._keep(max(self.tokens // 2, longest, SMALLEST_ROW))
            self._report.message(
                f"The device's memory was full: going on with micro_batch_tokens = {self.tokens}.",
                "warn",
                {"micro_batch_tokens": self.tokens},
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the machine had too little memory.

    Only an accelerator's allocator has a class of its own for it: its libraries and the CPU's allocator use words.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )


def give_back_freed_memory() -> None:
    """Let an accelerator's blocks of a row that is no more serve rows of another length."""
    gc.collect()
    torch.cuda.empty_cache()


_WORDS = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
"""Of the CUDA driver (torch.AcceleratorError), of the CPU's allocator, and of cuBLAS and its like."""

_TOO_LONG = (
    "The device's memory is full with one item of {} tokens, the longest, in a row of its own: set "
    "gradient_checkpointing to true, moments to '8bit' or train to 'mask' where the stage has them, lower "
    "max_prompt_tokens and max_response_tokens, or take a smaller model."
)
