"""Checkpoints: how many there are, what is read where one is damaged, and what is held to write and read one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import torch
from safetensors.torch import load_file

from allo_engine.report import Report
from allo_engine.training.resuming import Checkpoints, LazyTensor, OptimizerState


def test_a_checkpoint_that_is_saved_twice_is_there(tmp_path: Path, report: Report) -> None:
    """A stop right behind a checkpoint saves the same one again, under the same name."""
    values = {"weight": torch.nn.Parameter(torch.ones(3))}
    checkpoints = Checkpoints(tmp_path, OptimizerState(values, torch.optim.AdamW(values.values())), report)
    for _ in range(10):
        checkpoints.save(7, {})
        assert checkpoints.load() == (7, {})
        assert len(list(tmp_path.iterdir())) <= 2


def test_where_the_newest_checkpoint_is_damaged_the_one_before_is_there(tmp_path: Path, report: Report) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    checkpoints = Checkpoints(tmp_path, OptimizerState({"weight": weight}, torch.optim.AdamW([weight])), report)
    for step in range(1, 5):
        weight.data.fill_(step)
        checkpoints.save(step, {})
    kept = sorted(tmp_path.iterdir())
    assert [path.name[:13] for path in kept] == ["step-00000003", "step-00000004"]
    kept[1].write_bytes(kept[1].read_bytes()[:-1])
    assert checkpoints.load() == (3, {})
    assert weight.tolist() == [3, 3, 3]


class SharedOut:
    """Tensors that are whole while somebody holds them. `most` of them were at once; `restored` is what they held."""

    def __init__(self) -> None:
        self._held: list[ReferenceType[torch.Tensor]] = []
        self.most = 0
        self.restored: dict[str, list[Any]] = {}

    def tensors(self) -> Iterator[LazyTensor]:
        kinds = [torch.uint8, torch.float32, torch.int64, torch.bfloat16]
        for number in range(12):
            shape, dtype = (number, 3)[: number % 3], kinds[number % 4]
            yield LazyTensor(f"values/{number}", dtype, shape, partial(self._whole, shape, number, dtype))

    def _whole(self, shape: tuple[int, ...], number: int, dtype: torch.dtype) -> torch.Tensor:
        return self._counted(torch.full(shape, number, dtype=dtype))

    def _counted(self, tensor: torch.Tensor) -> torch.Tensor:
        self._held.append(ref(tensor))
        self.most = max(self.most, sum(held() is not None for held in self._held))
        return tensor

    def restore(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in tensors:
            self.restored[name] = self._counted(tensor).tolist()


def test_saving_and_loading_hold_one_tensor_at_a_time(tmp_path: Path, report: Report) -> None:
    """Of every kind and shape. What several devices share out may be too large to be whole in one process."""
    state = SharedOut()
    checkpoints = Checkpoints(tmp_path, state, report)
    checkpoints.save(3, {"loss": [1.0, 2.0]})
    assert checkpoints.load() == (3, {"loss": [1.0, 2.0]})
    assert state.most == 1
    assert state.restored == {lazy.name: lazy.whole().tolist() for lazy in state.tensors()}
    (path,) = tmp_path.iterdir()
    assert {name: tensor.dtype for name, tensor in load_file(path).items()} == {
        lazy.name: lazy.dtype for lazy in state.tensors()
    }
