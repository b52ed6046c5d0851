"""Fewer tokens a row where memory proves too small, and never a second try of what cannot fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from allo_engine.config import EvaluateConfig, LocateConfig, SftConfig, TokenRewardsConfig
from allo_engine.model.loading import load_model
from allo_engine.model.memory import SMALLEST_ROW, available_bytes, held_bytes, row_bytes
from allo_engine.model.rows import (
    LONGEST_ROW,
    LONGEST_ROW_SCORED,
    RowBudget,
    fitting_rows,
    fitting_tokens,
    free_bytes,
    is_out_of_memory,
    use_of,
)
from allo_engine.model.sequences import Group, rows_of, singles
from allo_engine.model.shape import shape_of
from allo_engine.report import Report, StageError
from tests.architectures import save_random
from tests.unit.engine.conftest import Lines

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:40] or "MemoryError")
def test_every_way_to_say_that_memory_is_full_is_understood(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_the_cpus_own_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


def test_what_is_no_lack_of_memory_is_none() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(ValueError("out of memory, says a setting"))


def device_of(room: int, tried: list[list[int]], groups: list[Group]) -> Callable[[int], int]:
    """Work on a device that holds rows of so many tokens: notes the rows of each try, the last one's where it fails."""

    def work(budget: int) -> int:
        tried.append([])
        for row in rows_of(groups, budget):
            tokens = sum(group.tokens() for group in row)
            tried[-1].append(tokens)
            if tokens > room:
                raise torch.OutOfMemoryError
        return budget

    return work


def long_and_short(longest: int) -> list[Group]:
    lengths = [longest, *([20] * 30)]
    return [singles(key, [key], [[9] * (length - 1), [8] * (length - 1)]) for key, length in enumerate(lengths)]


def test_rows_are_never_shorter_than_the_longest_item(tmp_path: Path, report: Report, stream: Lines) -> None:
    """Of 512 tokens, halved, they would be of 64; the longest item has 98, and 100 fit."""
    tried: list[list[int]] = []
    groups = long_and_short(99)
    rows = RowBudget(512, tmp_path, report)
    assert rows.fit(device_of(100, tried, groups), groups) == 98
    assert [max(row) for row in tried][-1] <= 100
    assert [line["data"]["micro_batch_tokens"] for line in stream.lines()] == [256, 128, 98]
    assert RowBudget(512, tmp_path, report).tokens == 98


def test_an_item_that_cannot_fit_is_tried_once_and_named(tmp_path: Path, report: Report) -> None:
    tried: list[list[int]] = []
    groups = long_and_short(99)
    with pytest.raises(StageError, match=r"one item of 98 tokens.*gradient_checkpointing.*max_prompt_tokens") as caught:
        RowBudget(64, tmp_path, report).fit(device_of(90, tried, groups), groups)
    assert caught.value.code == "out_of_memory"
    assert tried == [[98]]


def test_another_error_is_raised_as_it_is(tmp_path: Path, report: Report) -> None:
    def work(budget: int) -> int:
        raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side"):
        RowBudget(64, tmp_path, report).fit(work, long_and_short(50))


def memory_for(folder: Path, tokens: int, checkpointing: bool = False) -> float:
    """GiB in which so many tokens a row just fit a dense training."""
    shape, use = shape_of(folder), use_of(SftConfig(), "dense", checkpointing=checkpointing)
    return (held_bytes(shape, use) + row_bytes(shape, use, tokens)) / 0.9499 / 2**30


def test_rows_fit_the_memory_that_a_job_is_given(tmp_path: Path, model_folder: Path, report: Report) -> None:
    assert fitting_tokens(SftConfig(micro_batch_tokens=77), model_folder, "dense") == 77
    assert fitting_tokens(SftConfig(memory_gb=8), model_folder, "dense") == LONGEST_ROW["cpu"]
    little = memory_for(model_folder, 200)
    assert fitting_tokens(SftConfig(memory_gb=little), model_folder, "dense") == 200
    assert fitting_tokens(SftConfig(memory_gb=little, gradient_checkpointing=True), model_folder, "dense") > 200
    assert RowBudget(128, tmp_path, report).tokens == 128
    assert RowBudget(999, tmp_path, report).tokens == 128, "a resumed run cuts its rows as the first one did"


def test_every_stage_that_packs_rows_takes_as_many_tokens_as_fit(model_folder: Path) -> None:
    for config, kind, longest in (
        (LocateConfig(), "gradient", LONGEST_ROW["cpu"]),
        (TokenRewardsConfig(), "forward", LONGEST_ROW_SCORED["cpu"]),
        (EvaluateConfig(), "forward", LONGEST_ROW_SCORED["cpu"]),
    ):
        assert fitting_tokens(config, model_folder, kind) == longest
        assert fitting_tokens(config.model_copy(update={"memory_gb": 1e-4}), model_folder, kind) == 32
        assert fitting_tokens(config.model_copy(update={"micro_batch_tokens": 99}), model_folder, kind) == 99


def test_what_a_loaded_model_takes_is_not_taken_away_twice(model_folder: Path) -> None:
    """Of a budget that the model alone would fill, rows are as long before it is loaded as after."""
    model = load_model(model_folder)
    before = available_bytes("cpu")
    assert free_bytes(SftConfig(), "cpu", model) >= before + shape_of(model_folder).stored_bytes - 2**30
    assert free_bytes(SftConfig(memory_gb=3), "cpu", model) == 3 * 2**30


@pytest.mark.parametrize(("longest", "switched_on"), [(150, False), (300, True)])
def test_activations_are_computed_twice_where_the_longest_item_does_not_fit_otherwise(
    tmp_path: Path, model_folder: Path, report: Report, longest: int, switched_on: bool
) -> None:
    config = SftConfig(memory_gb=memory_for(model_folder, 200), micro_batch_tokens=100)
    tokens, choice = fitting_rows(config, model_folder, "dense")
    rows = RowBudget(tokens, tmp_path, report, choice)
    assert rows.settle(long_and_short(longest)) is switched_on
    assert rows.tokens == 100
    again = RowBudget(tokens, tmp_path, report, choice)
    assert again.settle(long_and_short(1000)) is switched_on, "a resumed run does as the first one did"


def test_activations_are_computed_twice_where_rows_of_a_sensible_length_do_not_fit_otherwise(
    tmp_path: Path, model_folder: Path, report: Report
) -> None:
    tokens, choice = fitting_rows(SftConfig(memory_gb=memory_for(model_folder, 200)), model_folder, "dense")
    assert choice is not None
    rows = RowBudget(tokens, tmp_path, report, choice)
    assert tokens == 200
    assert rows.settle(long_and_short(10))
    assert 200 < rows.tokens == choice.tokens <= LONGEST_ROW["cpu"]


@pytest.mark.parametrize("setting", [True, False])
def test_a_setting_is_not_decided_again(model_folder: Path, setting: bool) -> None:
    config = SftConfig(memory_gb=memory_for(model_folder, 200), gradient_checkpointing=setting)
    assert fitting_rows(config, model_folder, "dense")[1] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:32"}, "max_split_size_mb:32"),
    ],
)
def test_a_stage_sets_up_the_allocator_before_torch_is_there(given: dict[str, str], expected: str) -> None:
    read = "import sys, os, allo_engine.__main__; print(os.environ['PYTORCH_ALLOC_CONF'], 'torch' in sys.modules)"
    others = {key: value for key, value in os.environ.items() if not key.endswith("ALLOC_CONF")}
    done = subprocess.run([sys.executable, "-c", read], env=others | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, "False"]


def test_a_model_that_reads_one_sequence_at_a_time_has_an_item_a_row_and_no_mask(
    tmp_path: Path, model_folder: Path
) -> None:
    """An item's prompt is read with each of its responses: 99 + 2·100 tokens of a pair are two sequences of 199."""
    alone = save_random("BLOOM", tmp_path)
    config = SftConfig(memory_gb=8)
    assert fitting_tokens(config, model_folder, "dense") == LONGEST_ROW["cpu"]
    tokens, choice = fitting_rows(config, alone, "dense")
    assert tokens == SMALLEST_ROW
    assert choice is not None
    pair = [Group(0, range(99), {0: range(100), 1: range(100)}, [(0, 1)])]
    assert replace(choice, without=398).needed(pair) is False
    assert replace(choice, without=397).needed(pair) is True
    assert replace(choice, without=299, packed=True).needed(pair) is False
    shape, use = shape_of(alone), use_of(config, "dense")
    assert row_bytes(shape, use, 512) - row_bytes(shape, replace(use, packs=False), 512) == 512**2 * 8
