"""A stage trained by the engine's own loop, and by TRL in the same stage process: `trainer` and nothing else differs.

Both read the same file, take the same ids in the same order, score the same reference once and leave a checkpoint. The
time is that of the whole stage but for what it imports; the memory is the process's peak, or the accelerator's.
"""

from __future__ import annotations

import importlib
import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from allo_engine.config import CONFIGS
from allo_engine.held import peak_bytes
from allo_engine.report import Report
from tests.benchmarks import material
from tests.benchmarks.case import COMPUTE, Case, Figures

PROBLEMS = 8
SETTINGS = {"n_epochs": 1, "batch_size": 16, "template": material.TEMPLATE}
STAGES = {"warmup": "pairs", "sft": "examples"}
"""Each with the input that it reads."""

PACE, MEMORY = "tokens/s", "peak bytes"


def preferences() -> list[dict[str, str]]:
    """Half of SAMPLES pairs of each problem."""
    given, half = material.problems(PROBLEMS * material.SAMPLES), material.SAMPLES // 2
    return [
        {"prompt": own[0].problem, "chosen": own[place].solution, "rejected": own[half + place].solution}
        for own in (given[first : first + material.SAMPLES] for first in range(0, len(given), material.SAMPLES))
        for place in range(half)
    ]


def solved() -> list[dict[str, str]]:
    return [{"problem": one.problem, "solution": one.solution} for one in material.problems(PROBLEMS * 10)]


def trained(stage: str, trainer: str) -> Figures:
    """Trained tokens a second, all that the stage does counted; and the most that its process held."""
    module = importlib.import_module(f"allo_engine.stages.{stage}")
    if trainer == "trl":
        importlib.import_module("allo_engine.training.trl_trainers")
    with tempfile.TemporaryDirectory() as root:
        folder = _written(Path(root) / "data", preferences() if stage == "warmup" else solved())
        inputs = {"model": material.model(), STAGES[stage]: folder}
        config = CONFIGS[stage].model_validate({**SETTINGS, "trainer": trainer})
        began = time.perf_counter()
        silent = Report(io.StringIO())
        told: Mapping[str, Any] = module.run(config, inputs, Path(root) / "out", Path(root) / "work", silent)
        return {PACE: told["trained_tokens"] / (time.perf_counter() - began), MEMORY: peak_bytes()}


def _written(folder: Path, lines: Sequence[Mapping[str, str]]) -> Path:
    folder.mkdir()
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


OWN = {stage: partial(trained, stage, "allo") for stage in STAGES}
TRL = {stage: partial(trained, stage, "trl") for stage in STAGES}

CASES = tuple(
    Case(
        f"{stage}, {figure}, the whole stage",
        OWN[stage],
        TRL[stage],
        lambda: f"trainer: trl, TRL {version('trl')}",
        goal=goal,
        higher_is_better=figure == PACE,
        limit=limit,
        figure=figure,
    )
    for stage, figure, goal, limit in (
        ("warmup", PACE, 1.5, COMPUTE),
        ("warmup", MEMORY, 1.0, "weights, gradient and moments: 16 bytes a weight under either"),
        ("sft", PACE, 1.2, COMPUTE),
        ("sft", MEMORY, 1.0, "weights, gradient and moments: 16 bytes a weight under either"),
    )
)
