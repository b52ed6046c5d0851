"""How many tokens a row may have: a setting, or what memory allows; and fewer where memory proves too small."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from allo_engine.bases import Moments, RowsConfig
from allo_engine.checkpoints.parts import local_of
from allo_engine.model.loading import device, dtype_of, packs
from allo_engine.model.memory import SMALLEST_ROW, Kind, Use, available_bytes, row_tokens
from allo_engine.model.sequences import Group
from allo_engine.model.shape import Shape, shape_of
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped

Result = TypeVar("Result")

LONGEST_ROW, LONGEST_ROW_SCORED = {"cpu": 512}, {"cpu": 1024}
LONGEST_ROW_ELSEWHERE = 16384
"""Longer rows gain nothing: on a CPU the matrix products are at their full speed long before."""

SENSIBLE_ROW = 2048
"""An accelerator is not busy with shorter rows: there activations are better computed twice."""


@dataclass(frozen=True)
class Choice:
    """Whether activations are computed twice, where that is left to us: rows of `wanted` tokens, or the longest item if
    that is longer, must fit. Without, `without` tokens fit; with it, rows have `tokens`. Where they are not `packed`,
    the sequences of an item share nothing.
    """

    wanted: int
    without: int
    tokens: int
    packed: bool = True

    def needed(self, groups: Iterable[Group]) -> bool:
        items = (
            group.prompt_and(item) if self.packed else sum(group.prompt_and((index,)) for index in item)
            for group in groups
            for item in group.items
        )
        return max([self.wanted, *items]) > self.without


def use_of(config: RowsConfig, kind: Kind, ratio: float = 1.0, checkpointing: bool = False) -> Use:
    """What a stage of these settings does with its model on this machine."""
    moments: Moments = getattr(config, "moments", "float32")
    use = Use(kind, dtype_of(config.precision).itemsize, ratio, moments, checkpointing, device().type)
    return replace(use, offload=getattr(config, "offload", False))


def fitting_rows(
    config: RowsConfig, folder: Path, kind: Kind, ratio: float = 1.0, loaded: nn.Module | None = None, zero: int = 0
) -> tuple[int, Choice | None]:
    """The tokens of a row of a folder's model in the memory that is free, and what computing activations twice would
    change, where that is left to us. What the model itself takes counts as free, where it is `loaded` already.

    A model that reads one sequence at a time is no quicker with more items in a row, and holds no more than one's.
    """
    use = replace(use_of(config, kind, ratio), packs=packs(folder), zero=zero, devices=here().size)
    shape: Shape | None = None
    with suppress(KeyError):
        shape = shape_of(folder)
    return rows_within(config, shape, use, free_bytes(config, use.device_type, loaded))


def rows_within(config: RowsConfig, shape: Shape | None, use: Use, budget: int) -> tuple[int, Choice | None]:
    """The same on any machine: of a model of this shape that is used so, where so many bytes may be held in all.

    A model whose sizes have names that we do not know has no shape: its rows shrink as soon as one does not fit.
    """
    asked, setting = config.micro_batch_tokens, getattr(config, "gradient_checkpointing", False)
    limits = LONGEST_ROW if use.training else LONGEST_ROW_SCORED
    usual = limits.get(use.device_type, LONGEST_ROW_ELSEWHERE) if use.packs else SMALLEST_ROW
    longest = usual if asked is None else asked
    if shape is None:
        return longest, None
    without, with_it = (row_tokens(shape, replace(use, checkpointing=again), budget) for again in (False, True))
    fits = with_it if setting is True else without
    tokens, leaner = (longest, longest) if asked else (min(longest, fits), min(longest, with_it))
    choice = Choice(longest if asked else min(longest, SENSIBLE_ROW), without, leaner, use.packs)
    return tokens, choice if setting == "auto" and use.training else None


def fitting_tokens(
    config: RowsConfig, folder: Path, kind: Kind, ratio: float = 1.0, loaded: nn.Module | None = None, zero: int = 0
) -> int:
    """The tokens of a row alone: see fitting_rows."""
    return fitting_rows(config, folder, kind, ratio, loaded, zero)[0]


def free_bytes(config: RowsConfig, device_type: str, loaded: nn.Module | None) -> int:
    """What a stage may hold in all, its model included: a setting, or what is free and what its model has already."""
    if (asked := asked_bytes(config)) is not None:
        return asked
    own = sum(local_of(weight).nbytes for weight in loaded.parameters()) if loaded else 0
    sharers = here().size if device_type == "cpu" else 1
    return available_bytes(device_type) // sharers + own


def asked_bytes(config: RowsConfig) -> int | None:
    """What a setting says that the stage may hold in all."""
    return None if config.memory_gb is None else round(config.memory_gb * 2**30)


class RowBudget:
    """The tokens of a row, and whether its activations are computed twice; kept in the work folder, so that a resumed
    run cuts its rows as the first one did.
    """

    def __init__(
        self, tokens: int, work: Path, report: Report, choice: Choice | None = None, again: bool = True
    ) -> None:
        """`again` says that work that was broken off can be begun anew by all ranks; else another attempt does it."""
        self.again = again
        self._file, self._report, self._ranks = work / "rows.json", report, here()
        found = self._ranks.gathered((tokens, choice))  # what fits the rank that has the least memory fits all
        self.tokens, self._choice = min(found, key=lambda one: one[0])
        self.checkpointing = False
        if kept := min(filter(None, self._ranks.gathered(self._kept())), key=lambda one: one["tokens"], default=None):
            self.tokens, self.checkpointing = kept["tokens"], kept["checkpointing"]
            self._choice = None
        elif self._choice is None:
            self._keep()

    def _kept(self) -> dict[str, Any] | None:
        return json.loads(self._file.read_text()) if self._file.exists() else None

    def _keep(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        aside = self._file.with_suffix(".tmp")
        aside.write_text(json.dumps({"tokens": self.tokens, "checkpointing": self.checkpointing}))
        aside.replace(self._file)

    def settle(self, groups: Iterable[Group]) -> bool:
        """Whether activations are computed twice. Decided once, from the longest item of a stage's data."""
        if self._choice is not None:
            if self._choice.needed(groups):
                self.tokens, self.checkpointing = self._choice.tokens, True
                self._report.message(
                    f"Activations are computed twice, as rows of {self._choice.wanted} tokens, or the longest item, do "
                    "not fit the memory otherwise: gradient_checkpointing is on.",
                    data={"gradient_checkpointing": True, "micro_batch_tokens": self.tokens},
                )
            self._choice = None
            self._keep()
        return self.checkpointing

    def fit(
        self, work: Callable[[int], Result], groups: Iterable[Group], undo: Callable[[], None] = lambda: None
    ) -> Result:
        """Do work with rows of at most so many tokens, fewer from now on where the device's memory was too small.

        Rows of `groups` are never made shorter than their longest item, which cannot be cut. Raises StageError
        "out_of_memory" where that alone does not fit, and Stopped, on all ranks, where the work of one raises it.
        """
        while True:
            done, ended = self._tried(work)
            # Where one rank's memory was too small, all begin this anew; if they can, for else they wait for this one.
            endings = self._ranks.gathered(ended) if self.again else [ended]
            if not any(endings):
                return done[0]
            undo()
            if Stopped in endings:
                raise Stopped
            give_back_freed_memory()
            longest = max((group.only([item]).tokens() for group in groups for item in group.items), default=0)
            if self.tokens <= max(longest, SMALLEST_ROW):
                raise StageError("out_of_memory", _TOO_LONG.format(longest))
            self.tokens = max(self.tokens // 2, longest, SMALLEST_ROW)
            self._keep()
            self._report.message(
                f"The device's memory was full: going on with micro_batch_tokens = {self.tokens}.",
                "warn",
                {"micro_batch_tokens": self.tokens},
            )
            if not self.again:
                raise StageError("out_of_memory", _IN_THE_MIDST.format(self.tokens))

    def _tried(self, work: Callable[[int], Result]) -> tuple[list[Result], type[Exception] | None]:
        """What the work gives; or nothing, and what ended it: the request to stop, or too small a memory."""
        try:
            return [work(self.tokens)], None
        except Stopped:
            return [], Stopped
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return [], MemoryError


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

_IN_THE_MIDST = (
    "The device's memory was full while other devices waited for this one's share of weights or gradients: another "
    "attempt goes on from the last checkpoint with micro_batch_tokens = {}."
)

_TOO_LONG = (
    "The device's memory is full with one item of {} tokens, the longest, in a row of its own: set "
    "gradient_checkpointing to true, moments to '8bit' or train to 'mask' where the stage has them, lower "
    "max_prompt_tokens and max_response_tokens, or take a smaller model."
)
