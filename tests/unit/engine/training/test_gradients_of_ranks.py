"""A step's gradient is autograd's of the whole batch's loss, however it is cut into rows and among ranks."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, LlamaModel

from allo_engine.config import SftConfig
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.attention import NAME
from allo_engine.model.logps import PerToken
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group, singles
from allo_engine.ranks import TOGETHER, Ranks, here
from allo_engine.report import Report, Stopped
from allo_engine.training.figures import Figures
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import CrossEntropy, Logps
from tests.tiny import tiny_model
from tests.unit.engine.conftest import Lines
from tests.unit.engine.processes import as_ranks

Arrays = dict[str, np.ndarray]

STEP = {"n_epochs": 1, "batch_size": 10**6, "warmup_ratio": 0, "schedule": "constant", "max_grad_norm": 1e9}
DESCENT = {"learning_rate": 1e6, "epsilon": 1e6}
"""AdamW's first step is lr·g/(|g| + ε): with a large ε and as large a rate it is the gradient itself."""


def examples(count: int) -> list[Group]:
    source = random.Random(1)

    def ids(most: int) -> list[int]:
        return [source.randrange(5, 261) for _ in range(source.randrange(1, most))]

    return [singles(key, [0, *ids(9)], [[*ids(12), 1] for _ in range(3)]) for key in range(count)]


def model_of(tied: bool, twice: bool) -> LlamaForCausalLM:
    """With `twice`, its second layer is its first: one module, and so each of its weights, is used two times."""
    model = tiny_model(tied=tied)
    if twice:
        model.model.layers[1] = model.model.layers[0]
    return model


def places(size: int) -> np.ndarray:
    return np.arange(0, size, 3)


def autograd(groups: Sequence[Group], tied: bool, twice: bool) -> Arrays:
    """The gradient of −Σlogπ / #tokens, by plain transformers, a sequence at a time, without anything of ours."""
    model = model_of(tied, twice)
    total, count = torch.zeros(()), 0
    for group in groups:
        for response in group.responses.values():
            logits = model(torch.tensor([[*group.prompt, *response]]), use_cache=False).logits[0]
            predicted = logits[len(group.prompt) - 1 : -1]
            total = total + cross_entropy(predicted, torch.tensor(response), reduction="sum")
            count += len(response)
    (total / count).backward()
    return {name: weight.grad.flatten().numpy() for name, weight in model.named_parameters() if weight.grad is not None}


def moved(groups: Sequence[Group], tied: bool, twice: bool, masked: bool, budget: int, work: Path) -> Arrays:
    """By how much one step of descent moves each trained entry."""
    model = model_of(tied, twice)
    config = SftConfig(micro_batch_tokens=budget, **STEP, **DESCENT)
    work = work / str(here().rank)
    report = Report(io.StringIO())
    rows = RowBudget(budget, work, report)
    before = {name: weight.detach().flatten().numpy().copy() for name, weight in model.named_parameters()}
    if not masked:
        Trainer(model, dict(model.named_parameters()), config, report, work, rows).train(groups, CrossEntropy())
        return {name: before[name] - weight.detach().flatten().numpy() for name, weight in model.named_parameters()}
    sparse = SparseModel(model, {name: (at := places(len(flat)), flat[at]) for name, flat in before.items()})
    Trainer(model, sparse.values, config, report, work, rows, written=sparse.write_back).train(groups, CrossEntropy())
    return {name: before[name][at] - values for name, (at, values) in sparse.trained().items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tied", "twice"), [(False, False), (True, True)])
@pytest.mark.parametrize(("ranks", "budget"), [(1, 4096), (1, 16), (2, 4096), (3, 16)])
def test_a_step_moves_by_autograds_gradient(
    tmp_path: Path, tied: bool, twice: bool, masked: bool, ranks: int, budget: int
) -> None:
    groups = examples(6)
    expected = autograd(groups, tied, twice)
    for found in as_ranks(ranks, tmp_path, moved, groups, tied, twice, masked, budget, tmp_path):
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            wanted = gradient[places(len(gradient))] if masked else gradient
            assert np.abs(found[name] - wanted).max() < 1e-5 * max(1, np.abs(wanted).max()), name


def moved_apart(*arguments: Any) -> Arrays:
    """The same where gradients are not exchanged; the process of a rank ends with it."""
    Ranks.total = lambda *_: None  # type: ignore[method-assign]
    return moved(*arguments)


@pytest.mark.parametrize("masked", [False, True])
def test_that_gradients_are_not_exchanged_would_be_seen(tmp_path: Path, masked: bool) -> None:
    groups = examples(6)
    expected = autograd(groups, True, False)
    for found in as_ranks(2, tmp_path, moved_apart, groups, True, False, masked, 4096, tmp_path):
        wanted = {name: grad[places(len(grad))] if masked else grad for name, grad in expected.items()}
        assert max(np.abs(found[name] - gradient).max() for name, gradient in wanted.items()) > 1e-3


def summed() -> tuple[Arrays, Arrays]:
    """Tensors of all sizes and kinds, and their sums over the ranks."""
    source = torch.Generator().manual_seed(here().rank)
    sizes = [1, 5, 0, 3000, TOGETHER // 8, TOGETHER // 4 + 1, 7, TOGETHER // 2, 2]
    kinds = [torch.float32, torch.float32, torch.float64]
    tensors = [torch.randn(size, generator=source).to(kinds[n % 3]) for n, size in enumerate(sizes * 2)]
    tensors.append(torch.randn(40, 3, generator=source))
    before = {str(n): tensor.numpy().copy() for n, tensor in enumerate(tensors)}
    here().total(tensors)
    return before, {str(n): tensor.numpy() for n, tensor in enumerate(tensors)}


def test_tensors_of_all_sizes_and_kinds_are_summed_to_the_same_bits_on_each_rank(tmp_path: Path) -> None:
    parts = as_ranks(3, tmp_path, summed)
    for name, total in parts[0][1].items():
        wanted = sum(before[name] for before, _ in parts)
        assert np.abs(total - wanted).max(initial=0) < 1e-5
        assert all(np.array_equal(found[name], total) for _, found in parts)


def test_a_rank_that_has_nothing_of_a_batch_steps_with_the_others(tmp_path: Path) -> None:
    (group,) = examples(1)
    one = [group.only([(0,)])]
    expected = autograd(one, True, False)
    for found in as_ranks(3, tmp_path, moved, one, True, False, False, 4096, tmp_path):
        assert all(np.abs(found[name] - gradient).max() < 1e-5 for name, gradient in expected.items())


class SmallDevice(LlamaModel):
    """A model on a device that holds rows of 40 tokens and no longer ones."""

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        if input_ids.shape[1] > 40:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(input_ids=input_ids, **more)


def on_devices(groups: Sequence[Group], small: Sequence[int], work: Path) -> tuple[Arrays, list[int]]:
    """The weights that training leaves where the ranks `small` have a small device, and the budgets that it told."""
    model = tiny_model()
    model.set_attn_implementation(NAME)
    if here().rank in small:
        model.model.__class__ = SmallDevice
    config = SftConfig(learning_rate=1e-3, batch_size=100, n_epochs=2, epsilon=1e-3)
    work, stream = work / str(here().rank), Lines()
    trainer = Trainer(
        model, dict(model.named_parameters()), config, Report(stream), work, RowBudget(256, work, Report(stream))
    )
    trainer.train(groups, CrossEntropy())
    told = [line["data"]["micro_batch_tokens"] for line in stream.lines() if line.get("level") == "warn"]
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}, told


@pytest.mark.parametrize("small", [0, 1])
def test_where_one_ranks_memory_is_short_all_take_shorter_rows(tmp_path: Path, small: int) -> None:
    groups = [singles(key, [0, 5 + key], [[20, 30 + key, 40, 1]]) for key in range(40)]
    ((expected, none),) = as_ranks(1, tmp_path / "one", on_devices, groups, [], tmp_path / "one")
    assert none == []
    found = as_ranks(2, tmp_path / "two", on_devices, groups, [small], tmp_path / "two")
    assert [told for _, told in found] == [found[small][1]] * 2
    assert found[small][1][-1] <= 40
    for weights, _ in found:
        assert all(np.abs(weights[name] - values).max() < 1e-5 for name, values in expected.items())


class Asked:
    """Cross-entropy over batches of four equal groups, of which each of two ranks is asked for two a step."""

    given: Sequence[PerToken] = ()

    def __init__(self, times: dict[int, set[int]], then: Callable[[], float]) -> None:
        """Of a rank in `times`, the loss is multiplied by what `then()` gives, at these times that it is asked."""
        self._times, self._then, self._asked = times.get(here().rank, set()), then, 0

    def weight(self, group: Group) -> float:
        return 1.0

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[torch.Tensor, Figures]:
        self._asked += 1
        return -logps[0].sum() * (self._then() if self._asked in self._times else 1.0), {}


EQUAL = [singles(key, [0], [[5 + key, 6, 1]]) for key in range(4)]


def with_numbers_gone(times: dict[int, set[int]], work: Path) -> tuple[Arrays, list[str]]:
    model, own, stream = tiny_model(), work / str(here().rank), Lines()
    config = SftConfig(learning_rate=1e-3, n_epochs=8, batch_size=100, checkpoint_seconds=1e-9)
    report = Report(stream)
    trainer = Trainer(model, dict(model.named_parameters()), config, report, own, RowBudget(3, own, report))
    trainer.train(EQUAL, Asked(times, lambda: math.nan))
    told = [line["message"] for line in stream.lines() if "message" in line]
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}, told


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_agree_on_what_is_not_finite_and_go_back_together(tmp_path: Path, rank: int) -> None:
    """One of the ranks meets a loss that is not a number; three times in a row sends all of them back."""
    (whole, _), _ = as_ranks(2, tmp_path / "whole", with_numbers_gone, {}, tmp_path / "whole")
    found = as_ranks(2, tmp_path / "gone", with_numbers_gone, {rank: {7, 10, 11}}, tmp_path / "gone")
    for weights, told in found:
        assert sum("passed over" in message for message in told) == 3
        assert sum(message.startswith("Resumed behind step") for message in told) == 1
        assert all(np.array_equal(weights[name], values) for name, values in whole.items())


def stopped(times: dict[int, set[int]], work: Path) -> list[str]:
    """The checkpoints that are there when the ranks have stopped."""
    model, own, report = tiny_model(), work / str(here().rank), Report(io.StringIO())
    config = SftConfig(learning_rate=1e-3, n_epochs=8, batch_size=100, checkpoint_seconds=1e6)

    def asks_to_stop() -> float:  # as a signal does
        report.stop_requested = True
        return 1.0

    trainer = Trainer(model, dict(model.named_parameters()), config, report, own, RowBudget(3, own, report))
    with pytest.raises(Stopped):
        trainer.train(EQUAL, Asked(times, asks_to_stop))
    here().barrier()
    return sorted(path.name[:13] for path in (work / "0").glob("step-*"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("time", "left"), [(5, ["step-00000002"]), (6, ["step-00000003"])])
def test_where_one_rank_is_asked_to_stop_all_stop_behind_the_same_step(
    tmp_path: Path, rank: int, time: int, left: list[str]
) -> None:
    """Asked in the midst of the third step, it gives that up, and so does the other, which was not asked at all."""
    assert as_ranks(2, tmp_path, stopped, {rank: {time}}, tmp_path) == [left, left]
