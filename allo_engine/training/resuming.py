"""Checkpoints for resuming: parameters, moments and figures, so that a resumed run is the run that was not stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from allo_engine.checkpoints.writing import DTYPES, Layout, header_bytes
from allo_engine.put import put
from allo_engine.ranks import here
from allo_engine.report import Report

Sums = Mapping[str, list[float]]

Weight = Callable[[str], Tensor]
"""A weight's values, by its name."""

_SHARE = 20

_DTYPES = {getattr(torch, name): stored for stored, name in DTYPES.items()} | {torch.uint8: "U8", torch.int64: "I64"}
"""Of weights, and of what optimizers keep of them."""


class LazyTensor(NamedTuple):
    """One tensor of a checkpoint, and how to have it whole, wherever its parts are: all ranks ask for it together."""

    name: str
    dtype: torch.dtype
    shape: Sequence[int]
    whole: Callable[[], Tensor]


class State(Protocol):
    """What a checkpoint holds, tensor by tensor: of each weight "values/NAME", and what the optimizer keeps of it."""

    def tensors(self) -> Iterator[LazyTensor]:
        """All tensors, in the same order on all ranks."""

    def restore(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Take what was saved, by however many ranks."""

    def weights(self) -> AbstractContextManager[Weight | None]:
        """For the first rank, all weights as they are now; nothing for the others, which help until it is done."""


class OptimizerState:
    """The state of parameters and their optimizer where every process has all of it."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = dict(parameters), optimizer

    def tensors(self) -> Iterator[LazyTensor]:
        for name, value in self.parameters.items():
            yield _held(f"values/{name}", value.detach())
            for key, state in self.optimizer.state[value].items():
                yield _held(f"{key}/{name}", torch.as_tensor(state))

    @torch.no_grad()
    def restore(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        for value in self.parameters.values():  # of a parameter that was not stepped yet, there is no state
            self.optimizer.state[value] = {}
        for place, tensor in tensors:
            key, _, name = place.partition("/")
            value = self.parameters[name]
            if key == "values":
                value.copy_(tensor)
            else:
                self.optimizer.state[value][key] = placed(tensor, value, self.optimizer)

    @contextmanager
    def weights(self) -> Iterator[Weight | None]:
        yield (lambda name: self.parameters[name].detach()) if here().leads else None


class Values:
    """Of a state, the weights without what the optimizer keeps of them."""

    def __init__(self, state: State) -> None:
        self._state = state

    def tensors(self) -> Iterator[LazyTensor]:
        return (tensor for tensor in self._state.tensors() if tensor.name.startswith("values/"))

    def restore(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        self._state.restore(tensors)

    def weights(self) -> AbstractContextManager[Weight | None]:
        return self._state.weights()


class Checkpoints:
    """The checkpoints of one training in a work folder: the newest few, as a rule the newest and the one before in case
    that is damaged.

    Where several ranks train as one, the first one writes, and all read what it wrote.
    """

    def __init__(self, work: Path, state: State, report: Report, kept: int = 2) -> None:
        self._state, self._report, self._ranks, self._kept = state, report, here(), kept
        self._work = self._ranks.firsts(work)

    def save(self, step: int, sums: Sums) -> None:
        """Forget the oldest, then write aside, sync and rename. The name holds the content's sha256.

        No rank ever holds more than one tensor that is whole for this alone.
        """
        tensors = sorted(self._state.tensors(), key=lambda one: -one.dtype.itemsize)  # each where its kind may lie
        if not self._ranks.leads:
            for tensor in tensors:
                tensor.whole()
            return
        others = [path for path in _newest_first(self._work) if step_of(path) != step]
        for path in others[self._kept - 1 :]:
            path.unlink()
        self._work.mkdir(parents=True, exist_ok=True)
        aside = self._work / "checkpoint.tmp"
        with aside.open("wb") as stream:
            stream.write(header_bytes(_layout(tensors), {"step": str(step), "totals": json.dumps(sums)}))
            for tensor in tensors:
                put(stream, _bytes(tensor.whole()))
        aside.replace(self._work / f"step-{step:08d}-{synced(aside)}.safetensors")

    def load(self, step: int | None = None) -> tuple[int, Sums] | None:
        """Load the newest whole checkpoint, or that behind a step: the next step, and the figures so far."""
        path = newest_whole(self._work, self._report, step)
        return self.read(path) if path else None

    def read(self, path: Path) -> tuple[int, Sums]:
        """Load that checkpoint: the next step, and the figures so far."""
        with safe_open(path, framework="pt") as file:
            self._state.restore((place, file.get_tensor(place)) for place in file.keys())  # noqa: SIM118 - no mapping
            metadata = file.metadata()
        return int(metadata["step"]), json.loads(metadata["totals"])


def newest_whole(work: Path, report: Report, step: int | None = None) -> Path | None:
    """The newest checkpoint, or that behind a step, in the first rank's work folder, whose content is what its name
    says."""
    for path in here().firsts([path for path in _newest_first(work) if step in (None, step_of(path))]):
        if sha256_of(path) == path.stem.split("-")[2]:
            return path
        report.message(f"Checkpoint {path.name} is damaged and was passed over.", level="warn")
    return None


def _newest_first(work: Path) -> list[Path]:
    return sorted(work.glob("step-*.safetensors"), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step behind which a checkpoint was saved."""
    return int(checkpoint.stem.split("-")[1])


def synced(path: Path) -> str:
    """Have a file's content on the disk; its sha256."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
    return sha256_of(path)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def placed(state: Tensor, value: Tensor, optimizer: torch.optim.Optimizer) -> Tensor | int:
    """Moments, and what their 8 bits mean, stand beside their parameter.

    So does the count of steps, a single number, where AdamW is fused; in 8 bits it is a plain number.
    """
    if not state.ndim and not state.is_floating_point():
        return int(state)
    beside = state.ndim or state.shape == value.shape or optimizer.defaults["fused"]
    return state.to(value.device) if beside else state


def _held(name: str, tensor: Tensor) -> LazyTensor:
    return LazyTensor(name, tensor.dtype, tensor.shape, lambda: tensor)


def _layout(tensors: Sequence[LazyTensor]) -> Layout:
    return {name: (_DTYPES[dtype], list(shape), math.prod(shape) * dtype.itemsize) for name, dtype, shape, _ in tensors}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data


class Cadence:
    """When to save: each so many seconds, but so seldom that saving takes a twentieth of the time at most."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._saved, self._cost = clock(), 0.0

    def due(self) -> bool:
        return self._clock() - self._saved > max(self._seconds, _SHARE * self._cost)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around a save, whose cost it takes down."""
        began = self._clock()
        yield
        self._saved = self._clock()
        self._cost = self._saved - began
