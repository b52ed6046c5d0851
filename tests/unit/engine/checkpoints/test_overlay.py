"""A sparse checkpoint over a base in memory is the merged model, and without it the base is what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from allo_engine.checkpoints.delta import merge, read_delta, write_delta
from allo_engine.checkpoints.overlay import READY, Overlay, in_model
from allo_engine.model.loading import load_model
from allo_engine.report import StageError
from tests.tiny import save_tiny
from tests.unit.engine.checkpoints.test_delta import some_values

IDS = torch.tensor([[0, 10, 20, 30, 40]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def deltas(base: Path) -> list[Path]:
    """More than are kept decoded."""
    folders = [base.parent / f"delta-{seed}" for seed in range(READY + 1)]
    for seed, folder in enumerate(folders):
        write_delta(some_values(base, seed), base, folder)
    return folders


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_shows_the_merged_models_logits_and_the_base_comes_back_bit_for_bit(
    base: Path, deltas: list[Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    model = load_model(base, dtype)
    before, overlay = weights(model), Overlay(in_model(model, base), base)
    for number, delta in enumerate([*deltas, deltas[0]]):
        merge(base, delta, tmp_path / str(number))
        overlay.show(delta)
        assert torch.equal(logits(model), logits(load_model(tmp_path / str(number), dtype)))
    overlay.show(None)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_one_that_does_not_fit_is_not_shown(base: Path, deltas: list[Path], tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    write_delta(some_values(other), other, tmp_path / "wrong")
    model = load_model(base)
    before, overlay = weights(model), Overlay(in_model(model, base), base)
    overlay.show(deltas[0])
    with pytest.raises(StageError, match="another base"):
        overlay.show(tmp_path / "wrong")
    assert overlay.shown is None
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_what_is_shown_are_the_values_that_training_left(base: Path, deltas: list[Path]) -> None:
    model = load_model(base)
    Overlay(in_model(model, base), base).show(deltas[0])
    found = dict(model.named_parameters())
    for name, (positions, values) in read_delta(deltas[0], base).items():
        assert np.array_equal(found[name].detach().view(-1)[torch.from_numpy(positions)].numpy(), values)
