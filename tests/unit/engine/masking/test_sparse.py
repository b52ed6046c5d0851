from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from allo_engine.checkpoints.delta import Values
from allo_engine.masking.sparse import SparseModel
from allo_engine.report import StageError
from tests.tiny import tiny_model

IDS = torch.tensor([[0, 10, 20, 30, 40, 50]])


def loss_of(model: LlamaForCausalLM) -> Tensor:
    return model(IDS).logits.log_softmax(-1)[0, :, 7].sum() * -1.0


def random_positions(model: LlamaForCausalLM, share: float) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {name: np.flatnonzero(random.random(p.numel()) < share) for name, p in model.named_parameters()}


def entries(model: LlamaForCausalLM, positions: dict[str, np.ndarray]) -> Values:
    """The positions with the values that the model has there."""
    weights = dict(model.named_parameters())
    return {name: (places, weights[name].detach().flatten().numpy()[places]) for name, places in positions.items()}


def weights_of(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """A model's weights by their plain names, whatever parametrizations it has."""
    found = {}
    for name, p in model.named_parameters():
        if not name.endswith(".0.values"):
            found[name.replace("parametrizations.", "").removesuffix(".original")] = p.detach()
    return found


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
    sparse = SparseModel(ours, entries(ours, positions))
    optimizer = torch.optim.AdamW(sparse.values.values(), lr=1e-2, weight_decay=weight_decay)
    for _ in range(10):
        loss_of(ours).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.write_back()
    found = weights_of(ours)
    for name, theirs in dense.named_parameters():
        assert torch.allclose(found[name], theirs, atol=1e-6), name


def test_weights_outside_the_mask_keep_their_bits() -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    positions = random_positions(model, 0.1)
    sparse = SparseModel(model, entries(model, positions))
    optimizer = torch.optim.AdamW(sparse.values.values(), lr=0.5)
    loss_of(model).backward()
    optimizer.step()
    sparse.write_back()
    for name, p in weights_of(model).items():
        changed = (p != before[name]).flatten().nonzero()[:, 0].tolist()
        assert set(changed) <= set(positions[name].tolist()), name
        assert changed or not len(positions[name])


def test_only_masked_entries_have_gradients_and_moments() -> None:
    model = tiny_model()
    sparse = SparseModel(model, entries(model, random_positions(model, 0.05)))
    loss_of(model).backward()
    trained = sum(values.numel() for values in sparse.values.values())
    assert sum(p.grad.numel() for p in model.parameters() if p.grad is not None) == trained


def test_a_16_bit_model_trains_in_float32_entries_that_move_by_less_than_it_can_tell() -> None:
    model = tiny_model().bfloat16()
    weights = dict(model.named_parameters())
    start = {
        name: (places, values + np.float32(1e-4) * np.abs(values))  # what bfloat16 rounds away
        for name, (places, values) in entries(tiny_model(), random_positions(model, 0.05)).items()
    }
    sparse = SparseModel(model, start)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(sparse.values.values(), lr=1e-7)
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.write_back()
    moved = [(sparse.trained()[name][1] - start[name][1]) for name in sparse.values]
    assert all(np.abs(step).max() <= 4e-7 for step in moved)
    assert all((step != 0).mean() > 0.5 for step in moved), "the entries keep what the weights cannot"
    changed = sum(int((weight != before[name]).sum()) for name, weight in weights_of(model).items())
    assert changed < 0.1 * sum(map(len, moved))


def test_training_holds_three_bytes_a_16_bit_weight() -> None:
    # 2 + 20ρ at ρ = 5 %: the weight; the entry's value, gradient, two moments and position, four bytes each
    model = tiny_model().bfloat16()
    sparse = SparseModel(model, entries(tiny_model(), random_positions(model, 0.05)))
    optimizer = torch.optim.AdamW(sparse.values.values())
    loss_of(model).backward()
    optimizer.step()
    values = list(sparse.values.values())
    held = [*weights_of(model).values(), *model.buffers(), *values, *(v.grad for v in values)]
    held += [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    total = sum(weight.numel() for weight in weights_of(model).values())
    trained = sum(v.numel() for v in values)
    inverse_frequencies = sum(b.nbytes for n, b in model.named_buffers() if "inv_freq" in n)
    assert sum(tensor.nbytes for tensor in held) - inverse_frequencies == 2 * total + 20 * trained


def test_a_mask_of_another_model_is_refused() -> None:
    with pytest.raises(StageError, match=r"does not have: layers\.9\.weight"):
        SparseModel(tiny_model(), {"layers.9.weight": (np.array([0]), np.zeros(1, np.float32))})
