"""A mask's map worked by hand, and that it stays small however large the model."""

from __future__ import annotations

from typing import Any

import pytest

from service.pages.charts import Cell
from service.pages.maps import MOST_CELLS, OUTSIDE, grid_of, outside_of


def row(weights: int, share: float) -> dict[str, float]:
    return {"weights": weights, "forget": 0.0, "improve": share}


LAYERS = {
    "model.layers.0": {"mlp.up": row(100, 0.5), "norm": row(10, 0.0)},
    "model.layers.1": {"mlp.up": row(100, 0.1)},
    OUTSIDE: {"model.embed_tokens": row(1000, 0.001)},
}


def test_a_layer_is_a_row_and_a_module_a_column() -> None:
    grid = grid_of(LAYERS, "improve")
    assert (grid.rows, grid.columns) == (["0", "1"], ["mlp.up", "norm"])
    assert grid.cells == [[Cell(0.5, 100), Cell(0.0, 10)], [Cell(0.1, 100), None]]
    assert grid.most == 0.5
    assert outside_of(LAYERS, "improve") == [("model.embed_tokens", Cell(0.001, 1000))]
    assert grid_of(LAYERS, "forget").most == 0.0


def test_experts_are_one_module() -> None:
    layers = {"model.layers.0": {f"mlp.experts.{n}.up": row(100, share) for n, share in enumerate((0.1, 0.3))}}
    layers["model.layers.0"] |= {"mlp.gate": row(4, 0.25)}
    grid = grid_of(layers, "improve")
    assert grid.columns == ["mlp.experts.*.up", "mlp.gate"]
    assert grid.cells == [[Cell(pytest.approx(0.2), 200), Cell(0.25, 4)]]


def test_layers_of_several_towers_keep_their_names() -> None:
    layers: dict[str, Any] = {"vision.blocks.0": {"q": row(1, 1)}, "text.layers.0": {"q": row(1, 1)}}
    assert grid_of(layers, "improve").rows == ["blocks 0", "layers 0"]


def test_of_a_very_deep_model_neighbouring_layers_are_one_row() -> None:
    deep = {f"layers.{n}": {f"m{m}": row(10, n / 100) for m in range(10)} for n in range(100)}
    grid = grid_of(deep, "improve")
    assert len(grid.rows) * len(grid.columns) <= MOST_CELLS
    assert grid.rows[:2] == ["0–1", "2–3"]
    assert grid.cells[1][0] == Cell(pytest.approx(0.025), 20)


def test_a_model_without_layers_has_an_empty_map() -> None:
    grid = grid_of({OUTSIDE: {"head": row(3, 1.0)}}, "improve")
    assert (grid.rows, grid.columns, grid.most) == ([], [], 0.0)
