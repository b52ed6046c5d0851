from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allo_engine.model import memory
from allo_engine.model.attention import NAME
from allo_engine.model.logps import token_logps
from allo_engine.model.memory import Kind, Shape, held_bytes, row_bytes, row_tokens, shape_of, token_bytes
from allo_engine.model.sequences import build_row, singles
from tests.tiny import tiny_model

GIB = 2**30

SEVEN_B = Shape(
    weights=7_000_000_000,
    stored_bytes=14_000_000_000,
    layers=32,
    hidden=4096,
    intermediate=11008,
    heads=32,
    kv_heads=32,
    head_size=128,
    vocabulary=32000,
    tied=False,
    largest=32000 * 4096,
)


@pytest.mark.parametrize("tied", [True, False])
def test_a_shape_is_that_of_the_model_that_transformers_loads(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tied=tied)
    model.save_pretrained(tmp_path)
    shape = shape_of(tmp_path)
    weights = sum(weight.numel() for weight in model.parameters())
    assert shape == Shape(weights, 4 * weights, 2, 32, 64, 4, 2, 8, 261, tied, 261 * 32)


def test_a_sharded_checkpoint_has_the_shape_of_the_whole_one(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "whole")
    tiny_model().save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert shape_of(tmp_path / "sharded") == shape_of(tmp_path / "whole")


def test_sixteen_bit_weights_are_half_as_many_bytes(tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    shape = shape_of(tmp_path)
    assert shape.stored_bytes == 2 * shape.weights


@pytest.mark.parametrize("weights", [7_000_000_000, 70_000_000_000])
def test_a_twentieth_of_16_bit_weights_trains_in_3_bytes_a_weight_where_dense_takes_16(weights: int) -> None:
    shape = replace(SEVEN_B, weights=weights)
    largest_gradient = 32000 * 4096 * (4 + 2)
    assert held_bytes(shape, "sparse", 0.05, 2) == 3 * weights + largest_gradient
    assert held_bytes(shape, "gradient", 0.05, 2) == 6 * weights + largest_gradient
    assert held_bytes(shape, "dense", 0.05, 2) == 16 * weights
    assert held_bytes(shape, "forward", 0.05, 2) == 2 * weights


def test_token_bytes_are_what_autograd_keeps_of_one_token() -> None:
    """Counted with autograd's own hooks: a third layer keeps what `token_bytes` says."""
    length = 64
    shape = _tiny_shape(layers=1)
    extra = _saved_bytes(3, length) - _saved_bytes(2, length)
    assert extra == pytest.approx(length * token_bytes(shape, 4, training=True), rel=0.02)


def test_gradient_checkpointing_keeps_the_layers_inputs_and_one_layer() -> None:
    one_layer = token_bytes(SEVEN_B, 2, training=False)
    assert token_bytes(SEVEN_B, 2, True, gradient_checkpointing=True) == 32 * 4096 * 2 + one_layer
    assert token_bytes(SEVEN_B, 2, True) == 32 * one_layer


@given(
    st.sampled_from(["forward", "dense", "sparse", "gradient"]), st.floats(0.001, 1), st.integers(0, 200), st.booleans()
)
def test_the_longest_row_fits_its_budget_and_a_longer_one_does_not(
    kind: Kind, ratio: float, gibibytes: int, checkpointing: bool
) -> None:
    budget = gibibytes * GIB
    tokens = row_tokens(SEVEN_B, kind, ratio, 2, budget, checkpointing)
    held = held_bytes(SEVEN_B, kind, ratio, 2)
    needed = [held + row_bytes(SEVEN_B, n, 2, kind != "forward", checkpointing) for n in (tokens, tokens + 1)]
    assert tokens >= 32
    assert needed[1] > budget
    assert tokens == 32 or needed[0] <= budget


def test_free_memory_is_no_more_than_a_groups_limit_leaves(tmp_path: Path) -> None:
    _group(tmp_path, "max", 900, 0)
    _group(tmp_path / "job", "1000", 800, 300)
    (tmp_path / "job" / "inner").mkdir()
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/elsewhere\n0::/job/inner\n")
    assert memory.cgroup_bytes(membership, tmp_path) == [1000 - 800 + 300]


def test_a_machine_without_groups_has_no_limit(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/\n")
    assert memory.cgroup_bytes(membership, tmp_path) == []
    assert 0 < memory.available_bytes("cpu") <= memory.machine_bytes()


def test_a_machines_free_memory_is_what_the_kernel_says_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  100 kB\nMemAvailable:   40 kB\n")
    assert memory.machine_bytes(tmp_path / "meminfo") == 40 * 1024


def _group(folder: Path, limit: str, current: int, inactive: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{current}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {inactive}\n")


def _tiny_shape(layers: int) -> Shape:
    return Shape(0, 0, layers, 32, 64, 4, 2, 8, 261, True, 0)


def _saved_bytes(layers: int, length: int) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass, weights apart."""
    model = tiny_model()
    model.config.num_hidden_layers = layers
    model = type(model)(model.config).eval()
    weights = {weight.data_ptr() for weight in model.parameters()}
    model.set_attn_implementation(NAME)
    row = build_row([singles(0, [3], [[3] * length])])
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert token_logps(model, row).isfinite().all()
    return sum(kept.values())
