"""The mean of a training's last checkpoints: LAWA (arXiv 2306.03241), without its buffer in memory.

They are the values behind the steps at which a validation is taken, or would be: steps that follow from the settings,
and not from a clock, so that a run that was cut ends in the mean of the run that was not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from allo_engine.bases_trained import TrainingConfig
from allo_engine.report import Report
from allo_engine.training.resuming import Checkpoints, State, Values, newest_whole


def points(config: TrainingConfig, steps: int) -> list[int]:
    """The steps behind which a training of so many steps is looked at: each `evaluate_every` of an epoch, and the
    last."""
    every = max(1, round(config.evaluate_every * steps / config.n_epochs))
    return [*range(every, steps, every), steps]


class Averaging:
    """Keeps the values of `state` behind the last points, in `work`, and has the model as their mean in the end."""

    def __init__(self, config: TrainingConfig, steps: int, state: State, work: Path, report: Report) -> None:
        self._state, self._work, self._report = Values(state), work / "last", report
        self._kept = Checkpoints(self._work, self._state, report, config.average)
        self._points = points(config, steps) if config.average > 1 else []
        if config.patience is None:  # else nobody knows which will be the last
            self._points = self._points[-config.average :]
        self._count = config.average

    def due(self, step: int) -> bool:
        return step in self._points

    def take(self, step: int) -> None:
        self._kept.save(step, {})

    def settle(self, step: int) -> int:
        """Have the model as the mean, where a training that ended behind this step has several to take it of; their
        number, else 0."""
        wanted = [point for point in self._points if point <= step][-self._count :]
        paths = [path for path in (newest_whole(self._work, self._report, point) for point in wanted) if path]
        if len(paths) < 2:
            return 0
        self._state.restore(_means(paths))
        return len(paths)


def _means(paths: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """The mean of each tensor, one at a time, summed in double precision."""
    with ExitStack() as stack:
        first, *others = (stack.enter_context(safe_open(path, framework="pt")) for path in paths)
        for name in first.keys():  # noqa: SIM118 - no mapping
            total = first.get_tensor(name).double()
            for file in others:
                total += file.get_tensor(name)
            yield name, (total / len(paths)).to(torch.float32)
