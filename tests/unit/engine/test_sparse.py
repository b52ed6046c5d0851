from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from allo_engine.report import StageError
from allo_engine.sparse import SparseModel
from tests.tiny import tiny_model

IDS = torch.tensor([[0, 10, 20, 30, 40, 50]])


def loss_of(model: LlamaForCausalLM) -> Tensor:
    return model(IDS).logits.log_softmax(-1)[0, :, 7].sum() * -1.0


def random_positions(model: LlamaForCausalLM, share: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {name: np.flatnonzero(random.random(p.numel()) < share) for name, p in model.named_parameters()}


def dense_masked_steps(
    model: LlamaForCausalLM, positions: dict[str, np.ndarray], steps: int, weight_decay: float
) -> None:
    """AdamW over every weight, its gradient and its weights' change masked: what the sparse one must equal."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = {name: torch.zeros(p.numel(), dtype=torch.bool) for name, p in model.named_parameters()}
    for name, places in positions.items():
        masks[name][places] = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=weight_decay)
    for _ in range(steps):
        loss_of(model).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            p.grad.mul_(masks[name].view_as(p))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.where(masks[name].view_as(p), p, before[name]))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_masked_entries_is_dense_masked_adamw(tied: bool, weight_decay: float) -> None:
    ours, dense = tiny_model(tied=tied), tiny_model(tied=tied)
    positions = random_positions(ours, 0.05)
    dense_masked_steps(dense, positions, 10, weight_decay)
    sparse = SparseModel(ours, positions)
    optimizer = torch.optim.AdamW(sparse.values.values(), lr=1e-2, weight_decay=weight_decay)
    for _ in range(10):
        loss_of(ours).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.write_back()
    sparse.detach(ours)
    for (name, mine), theirs in zip(ours.named_parameters(), dense.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6), name


def test_weights_outside_the_mask_keep_their_bits() -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    positions = random_positions(model, 0.1)
    sparse = SparseModel(model, positions)
    optimizer = torch.optim.AdamW(sparse.values.values(), lr=0.5)
    loss_of(model).backward()
    optimizer.step()
    sparse.detach(model)
    for name, p in model.named_parameters():
        changed = (p != before[name]).flatten().nonzero()[:, 0].tolist()
        assert set(changed) <= set(positions[name].tolist()), name
        assert changed or not len(positions[name])


def test_only_masked_entries_have_gradients_and_moments() -> None:
    model = tiny_model()
    sparse = SparseModel(model, random_positions(model, 0.05))
    loss_of(model).backward()
    trained = sum(values.numel() for values in sparse.values.values())
    assert sum(p.grad.numel() for p in model.parameters() if p.grad is not None) == trained


def test_detached_model_has_its_plain_names_and_tied_weights() -> None:
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    sparse = SparseModel(model, random_positions(model, 0.05))
    sparse.detach(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_mask_of_another_model_is_refused() -> None:
    with pytest.raises(StageError, match=r"does not have: layers\.9\.weight"):
        SparseModel(tiny_model(), {"layers.9.weight": np.array([0])})
