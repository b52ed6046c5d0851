"""How often the host waits for the device, and what stands where; on devices that have no numbers where there is none.

On a CPU tensor to read a number is no wait, but it is the same call. `Waits` counts the calls that are one on an
accelerator: those that Python makes (`tolist`, `cpu`, …) and those that operators make (`item`, `nonzero`, …).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from allo_engine.config import ImproveConfig
from allo_engine.masking.gradients import summed_gradients
from allo_engine.model import head
from allo_engine.model.attention import NAME, Forest, block_mask, blocks_of
from allo_engine.model.logps import PerToken, score
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group, batches, build_row, rows_of
from allo_engine.report import Report
from allo_engine.training import losses
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import CrossEntropy, Objective, PairObjective, SimNpo, TokenNpo
from allo_engine.training.resuming import placed
from tests.tiny import tiny_model

_IN_PYTHON = {"tolist", "cpu", "numpy", "__array__"}
_IN_OPERATORS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"}


class _Calls(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        self._found[name] += name in _IN_PYTHON
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode, AbstractContextManager["Waits"]):
    """Counts, by name, what would make a host wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._calls = _Calls(self.found)

    def __enter__(self) -> Waits:
        self._calls.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._calls.__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.name().partition(".")[0]
        by_mask = name == "aten::index" and any(place is not None and place.dtype == torch.bool for place in args[1])
        self.found[name] += name in _IN_OPERATORS or by_mask
        return func(*args, **(kwargs or {}))

    def count(self) -> int:
        return self.found.total()


def test_every_kind_of_wait_is_counted() -> None:
    given = torch.arange(3.0)
    with Waits() as waits:
        given.tolist()
        given.cpu()
        given[0].item()
        float(given[1])
        assert given[2] > 0
        given[given > 0]
        given.sum()
    assert waits.count() == 6


def pairs(count: int) -> list[Group]:
    source = random.Random(0)
    ids = lambda: [source.randrange(5, 261) for _ in range(source.randrange(2, 12))]  # noqa: E731
    return [Group(key, [0, *ids()], {i: [*ids(), 1] for i in range(4)}, [(0, 2), (1, 3)]) for key in range(count)]


def packing_model() -> LlamaForCausalLM:
    model = tiny_model()
    model.set_attn_implementation(NAME)
    return model


def in_attention(rows: list[list[Group]]) -> int:
    """What a CPU's attention, which is cut into blocks on the host, takes of these rows. A GPU's has no such part."""
    with Waits() as waits:
        for groups in rows:
            row = build_row(groups)
            blocks_of(Forest(row.ends, row.positions[0]))
    return waits.count()


def test_a_gpus_attention_waits_for_nothing() -> None:
    row = build_row(pairs(12))
    with Waits() as waits:
        block_mask(Forest(row.ends, row.positions[0]))
    assert waits.count() == 0, waits.found


class Steps(Report):
    """Takes down the waits at each reported step."""

    def __init__(self, stream: Any, waits: Waits) -> None:
        super().__init__(stream)
        self._waits, self.at = waits, [0]

    def progress(self, step: int, total: int, metrics: Mapping[str, float | int] | None = None) -> None:
        super().progress(step, total, metrics)
        self.at.append(self._waits.count())


def objectives(groups: list[Group]) -> dict[str, Objective]:
    numbers: PerToken = {(g.key, i): torch.rand(len(ids)).round() for g in groups for i, ids in g.responses.items()}
    return {
        "sft": CrossEntropy(),
        "dpo": PairObjective(numbers, 0.1, lambda chosen, rejected: losses.dpo(chosen.sum(), rejected.sum(), 0.1)),
        "improve": PairObjective(
            numbers, 0.1, lambda chosen, rejected: losses.filtered_dpo(chosen, rejected, 0.1, 0.3)
        ),
        "npo": TokenNpo(numbers, numbers, 0.1),
        "simnpo": SimNpo(numbers, 2.5, 0.0),
    }


@pytest.mark.parametrize("name", ["sft", "dpo", "improve", "npo", "simnpo"])
def test_a_training_step_waits_once_however_many_rows_it_has(tmp_path: Path, stream: Any, name: str) -> None:
    groups, waits = pairs(18), Waits()
    objective = objectives(groups)[name]
    report = Steps(stream, waits)
    model = packing_model()
    config = ImproveConfig(batch_size=12, learning_rate=1e-3)
    trainer = Trainer(model, dict(model.named_parameters()), config, report, tmp_path, RowBudget(100, tmp_path, report))
    steps = [rows_of([groups[place] for place in batch], 100) for batch in batches(groups, 12, 0, 0)]
    assert max(map(len, steps)) >= 3
    score(model, groups[:1], 100, lambda _: None)  # what is found out once about a model's head is found out
    with waits:
        trainer.train(groups, objective)
    found = [after - before for before, after in pairwise(report.at)]
    assert found == [1 + in_attention(rows) for rows in steps], waits.found


def test_scoring_waits_once_a_row(tmp_path: Path) -> None:
    groups, model = pairs(12), packing_model()
    score(model, groups[:1], 100, lambda _: None)
    with Waits() as waits:
        score(model, groups, 100, lambda _: None)
    rows = rows_of(groups, 100)
    assert waits.count() == len(rows) + in_attention(rows), waits.found


def test_where_sequences_are_read_one_after_another_they_are_found_without_a_wait() -> None:
    """Transformers itself asks once a sequence whether it is a packed one."""
    groups, model = pairs(6), tiny_model()
    score(model, groups[:1], 100, lambda _: None)
    sequences = [path for row in rows_of(groups, 100) for path in build_row(row).sequences()]
    with Waits() as waits:
        score(model, groups, 100, lambda _: None)
    assert waits.found["cpu"] == len(rows_of(groups, 100))
    assert +waits.found == Counter(cpu=waits.found["cpu"], **{"aten::_local_scalar_dense": len(sequences)})


def test_gradients_of_all_pairs_wait_for_nothing() -> None:
    groups, model = pairs(6), packing_model()
    score(model, groups[:1], 100, lambda _: None)
    with Waits() as waits:
        summed_gradients(model, groups, 100, lambda _: None)
    assert waits.count() == in_attention(rows_of(groups, 100)), waits.found


# --- devices without numbers


def test_a_rows_log_probabilities_are_cut_on_any_device() -> None:
    row = build_row(pairs(3))
    logps_R = torch.rand(len(row.targets))
    on_host, on_device = row.split(logps_R), row.cut(logps_R[row.members].to("meta"))
    assert {key: part.shape for key, part in on_device.items()} == {key: part.shape for key, part in on_host.items()}
    assert all(part.device.type == "meta" for part in on_device.values())


@pytest.mark.parametrize("fused", [True, False])
def test_a_resumed_optimizer_has_its_count_of_steps_where_its_kernel_wants_it(fused: bool) -> None:
    with FakeTensorMode():
        weight = torch.nn.Parameter(torch.empty(3, device="cuda"))
        optimizer = torch.optim.AdamW([weight], fused=fused)
        weight.grad = torch.empty_like(weight)
        optimizer.step()
        begun = {key: state.device.type for key, state in optimizer.state[weight].items()}
        loaded = {"step": torch.empty(()), "exp_avg": torch.empty(3), "exp_avg_sq": torch.empty(3)}  # from a file
        resumed = {key: placed(state, weight, optimizer).device.type for key, state in loaded.items()}
    assert resumed == begun
    assert resumed["step"] == ("cuda" if fused else "cpu")


def test_logits_in_16_bits_are_not_rounded_on_a_device_that_can_keep_them() -> None:
    with FakeTensorMode(), Products() as products:
        hidden, weight = (torch.empty(size, 16, device="cuda", dtype=torch.bfloat16) for size in (5, 99))
        assert head._product(hidden, weight.T).dtype == torch.float32
    assert products.given == [torch.float32], "the product itself is float32, not what is made of it"


class Products(TorchDispatchMode):
    """What the matrix products give."""

    def __init__(self) -> None:
        super().__init__()
        self.given = list[torch.dtype]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.name().startswith("aten::mm"):
            self.given.append(found.dtype)
        return found
