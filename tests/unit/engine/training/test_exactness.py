"""Before the first step the policy is the reference: every log-ratio is 0, in every precision, dense and in a mask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from allo_engine.config import ImproveConfig, Precision
from allo_engine.masking.sparse import SparseModel
from allo_engine.model.attention import NAME
from allo_engine.model.logp_cache import LogpCache
from allo_engine.model.logps import PerToken, computing, score
from allo_engine.model.rows import RowBudget
from allo_engine.model.sequences import Group
from allo_engine.report import Report
from allo_engine.training.figures import Figures
from allo_engine.training.loop import Trainer
from allo_engine.training.objectives import Logps
from tests.tiny import tiny_model


class Watched:
    """A loss that moves nothing, and the log-ratio of each scored token of each group that it is asked for."""

    def __init__(self, reference: PerToken) -> None:
        self.given: Sequence[PerToken] = (reference,)
        self.ratios: list[Tensor] = []

    def weight(self, group: Group) -> float:
        return len(group.items)

    def __call__(self, group: Group, logps: Logps, given: Sequence[Logps]) -> tuple[Tensor, Figures]:
        self.ratios += [(values - given[0][index]).detach() for index, values in logps.items()]
        return torch.stack([0 * values.sum() for values in logps.values()]).sum(), {}


def pairs(count: int = 24) -> list[Group]:
    source = random.Random(0)
    ids = lambda least, most: [source.randrange(5, 261) for _ in range(source.randrange(least, most))]  # noqa: E731
    return [
        Group(key, [0, *ids(3, 30)], {i: [*ids(1, 40), 1] for i in range(4)}, [(0, 2), (1, 3)]) for key in range(count)
    ]


def packing_model() -> LlamaForCausalLM:
    model = tiny_model()
    model.set_attn_implementation(NAME)
    return model


def trainer(work: Path, report: Report, precision: Precision, masked: bool) -> Trainer:
    model = packing_model()
    config = ImproveConfig(precision=precision, batch_size=6)
    rows = RowBudget(100, work, report)
    if not masked:
        return Trainer(model, dict(model.named_parameters()), config, report, work, rows)
    model = model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    start = {
        name: (np.arange(0, weight.numel(), 9), weight.detach().float().flatten().numpy()[::9].copy())
        for name, weight in model.named_parameters()
    }
    sparse = SparseModel(model, start)
    return Trainer(model, sparse.values, config, report, work, rows, written=sparse.write_back)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("precision", "most"), [("bfloat16", 0.0), ("float32", 1e-5)])
def test_the_log_ratio_is_zero_in_all_rows_of_the_first_epoch(
    tmp_path: Path, report: Report, precision: Precision, most: float, masked: bool
) -> None:
    groups = pairs()
    training = trainer(tmp_path, report, precision, masked)
    watched = Watched(training.reference(groups, LogpCache(tmp_path / "shared", tmp_path, "tiny", precision)))
    training.train(groups, watched)
    assert len(watched.ratios) == 4 * len(groups)
    assert float(torch.cat(watched.ratios).abs().max()) <= most


def test_in_16_bits_other_rows_or_another_way_to_round_give_other_log_probabilities(
    tmp_path: Path, report: Report
) -> None:
    """Why nothing is shared there: this is what the first steps of a loss would see as a difference."""
    groups = pairs()
    wide, narrow = packing_model(), packing_model().to(torch.bfloat16)
    with computing(wide, "bfloat16"):
        by_autocast = score(wide, groups, 200, lambda _: None)
    by_weights = score(narrow, groups, 200, lambda _: None)
    again = score(narrow, groups, 200, lambda _: None)
    assert all(torch.equal(logps, again[key]) for key, logps in by_weights.items())
    in_shorter_rows = score(narrow, groups, 100, lambda _: None)
    for other in (by_autocast, in_shorter_rows):
        assert max(float((logps - by_weights[key]).abs().max()) for key, logps in other.items()) > 1e-3


def test_float32_is_shared_and_16_bits_are_a_stages_own(tmp_path: Path, report: Report) -> None:
    groups = pairs(4)
    for precision, there in (("float32", "shared"), ("bfloat16", "own")):
        shared, own = tmp_path / precision / "shared", tmp_path / precision / "own"
        cache = LogpCache(shared, own, "tiny", precision)  # type: ignore[arg-type]
        cache.write(groups, score(packing_model(), groups, 200, lambda _: None))
        assert len(cache.read(groups)) == 4 * len(groups)
        assert [path.parent.name for path in (tmp_path / precision).rglob("logps.db")] == [there]


def test_a_resumed_run_in_16_bits_has_the_reference_of_the_first_one(tmp_path: Path, report: Report) -> None:
    groups = pairs(8)
    cache = LogpCache(tmp_path / "shared", tmp_path, "tiny", "bfloat16")
    first = trainer(tmp_path, report, "bfloat16", masked=True).reference(groups, cache)
    kept = '{"tokens": 64, "checkpointing": false}'
    (tmp_path / "rows.json").write_text(kept)  # the first run met full memory later on
    again = trainer(tmp_path, report, "bfloat16", masked=True).reference(groups, cache)
    assert all(torch.equal(logps, again[key]) for key, logps in first.items())
