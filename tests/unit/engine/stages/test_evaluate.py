"""Evaluation where the device's memory is full: shorter rows from there on, and the figures of long ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from allo_engine.config import EvaluateConfig
from allo_engine.report import Report, StageError
from allo_engine.stages import evaluate
from tests.tiny import save_tiny
from tests.unit.engine.conftest import Lines

WORDS = ("red", "blue", "green", "grey", "black", "white", "orange", "purple", "violet")


@contextmanager
def device_for(tokens: int) -> Iterator[list[int]]:
    """Any model here runs out of memory as a device does, in rows of more tokens; the rows that were tried."""
    tried: list[int] = []

    def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Embedding):
            tried.append(given[0].shape[1])
            if tried[-1] > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = register_module_forward_pre_hook(hook)
    try:
        yield tried
    finally:
        handle.remove()


def lines_of(kind: str) -> list[dict[str, Any]]:
    if kind == "pairs":
        return [{"prompt": f"say {word}", "chosen": word, "rejected": "no"} for word in WORDS]
    chats = [[("user", f"say {word}"), ("assistant", word)] for word in WORDS]
    return [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]


def evaluated(root: Path, kind: str, other: Path, base: Path, report: Report) -> dict[str, float]:
    held_out = root / "data"
    held_out.mkdir(parents=True)
    (held_out / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines_of(kind)))
    config = EvaluateConfig(micro_batch_tokens=128, template="{problem}:")
    inputs = {"heldout": held_out, "base": base, "warmup": other}
    return evaluate.run(config, inputs, root / "out", root / "work", report)


@pytest.mark.parametrize("kind", ["pairs", "chats"])
def test_rows_are_halved_where_memory_is_full_and_the_figures_stay(
    tmp_path: Path, model_folder: Path, report: Report, stream: Lines, kind: str
) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    expected = evaluated(tmp_path / "enough", kind, other, model_folder, report)
    with device_for(64) as tried:
        found = evaluated(tmp_path / "full", kind, other, model_folder, report)
    assert found == pytest.approx(expected, abs=1e-4)
    assert [rows > 64 for rows in tried].count(True) == 1, "the first row alone is tried in vain"
    told = [line["data"]["micro_batch_tokens"] for line in stream.lines() if line.get("level") == "warn"]
    assert told == [64]
    assert json.loads((tmp_path / "full" / "work" / "rows.json").read_text())["tokens"] == 64


def test_an_item_that_does_not_fit_alone_says_what_to_change(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    with device_for(4), pytest.raises(StageError, match="max_prompt_tokens") as caught:
        evaluated(tmp_path, "pairs", model_folder, model_folder, report)
    assert caught.value.code == "out_of_memory"
