"""Checkpoints for resuming: parameters, moments and figures, so that a resumed run is the run that was not stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from allo_engine.ranks import here
from allo_engine.report import Report

Sums = Mapping[str, list[float]]

_SHARE = 20


class State(Protocol):
    """What a checkpoint holds, tensor by tensor: of each weight "values/NAME", and what the optimizer keeps of it."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor whole, wherever its parts are. All ranks ask for all of them."""

    def restore(self, tensors: Iterator[tuple[str, Tensor]]) -> None:
        """Take what was saved, by however many ranks."""


class OptimizerState:
    """The state of parameters and their optimizer in one process."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = dict(parameters), optimizer

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.parameters.items():
            yield f"values/{name}", value.detach()
            for key, state in self.optimizer.state[value].items():
                yield f"{key}/{name}", _apart(state)

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


class Checkpoints:
    """The checkpoints of one training in a work folder: the newest, and the one before in case that is damaged.

    Where several ranks train as one, the first one writes, and all read what it wrote.
    """

    def __init__(self, work: Path, state: State, report: Report) -> None:
        self._state, self._report, self._ranks = state, report, here()
        self._work = self._ranks.firsts(work)

    def save(self, step: int, sums: Sums) -> None:
        """Forget all but the newest, then write aside, sync and rename. The name holds the content's sha256."""
        tensors = {}
        for name, tensor in self._state.tensors():
            if self._ranks.leads:
                tensors[name] = tensor.cpu().contiguous()
        if self._ranks.leads:
            self._write(tensors, {"step": str(step), "totals": json.dumps(sums)})

    def _write(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        for path in self._newest_first()[1:]:
            path.unlink()
        self._work.mkdir(parents=True, exist_ok=True)
        aside = self._work / "checkpoint.tmp"
        save_file(tensors, aside, metadata=metadata)
        aside.replace(self._work / f"step-{int(metadata['step']):08d}-{synced(aside)}.safetensors")

    def load(self) -> tuple[int, Sums] | None:
        """Load the newest checkpoint whose content is what its name says: the next step, and the figures so far."""
        for path in self._ranks.firsts(self._newest_first()):
            if sha256_of(path) == path.stem.split("-")[2]:
                return self._load(path)
            self._report.message(f"Checkpoint {path.name} is damaged and was passed over.", level="warn")
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self._work.glob("step-*.safetensors"), reverse=True)

    def _load(self, path: Path) -> tuple[int, Sums]:
        with safe_open(path, framework="pt") as file:
            self._state.restore((place, file.get_tensor(place)) for place in file.keys())  # noqa: SIM118 - no mapping
            metadata = file.metadata()
        return int(metadata["step"]), json.loads(metadata["totals"])


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


def _apart(state: Tensor | int) -> Tensor:
    """As a file can hold it: what is small may be shared by all parameters, as is the map of 8 bits to numbers."""
    tensor = torch.as_tensor(state).detach()
    return tensor.clone() if tensor.numel() <= 256 else tensor


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
