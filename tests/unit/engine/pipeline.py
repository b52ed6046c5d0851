"""Runs a job's stages in this process, folder to folder, as the worker would: no service."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allo_engine.checkpoints.delta import merge
from allo_engine.checkpoints.recipe import DESCRIBED
from allo_engine.pipeline import Data, Method, plan
from allo_engine.report import Report

COLOURS = ["red", "blue", "green", "grey"]
THINGS = ["sky", "sea", "leaf", "stone", "rose", "cloud", "grass", "brick"]


def write_problems(folder: Path, count: int = 8) -> Path:
    """Problems that a tiny model half learns: which colour a thing has."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        colour = COLOURS[number % len(COLOURS)]
        lines.append({"problem": THINGS[number], "solution": f"The answer is {colour}", "answer": colour})
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_job(
    root: Path,
    method: Method,
    data: Data,
    given: dict[str, Path],
    stages: dict[str, Any],
    report: Report,
    hyperparameters: dict[str, Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Every stage's metrics; outputs lie in root/<stage>/<output>."""
    metrics: dict[str, dict[str, float]] = {}
    for stage in plan(method, data, stages, hyperparameters):
        inputs = {name: whole_input(source, root, given) for name, source in stage.inputs.items()}
        inputs["cache"] = root / "cache"
        module = importlib.import_module(f"allo_engine.stages.{stage.kind}")
        metrics[stage.name] = module.run(stage.config, inputs, root / stage.name, root / "work" / stage.name, report)
    return metrics


def whole_input(source: str, root: Path, given: Mapping[str, Path]) -> Path:
    """The folder of what a stage reads."""
    return _whole(root / source.replace(".", "/"), root, given) if "." in source else given[source]


def _whole(folder: Path, root: Path, given: Mapping[str, Path]) -> Path:
    """What a stage wrote; of a checkpoint that it only described, the merged one, as the store makes it."""
    if not (folder / DESCRIBED).exists():
        return folder
    sft = root / "sft" / "checkpoint"
    return aligned_folder(root, sft if sft.exists() else given["model"], folder.parent.name)


def aligned_folder(root: Path, start: Path, stage: str = "improve") -> Path:
    """The folder of what a stage described: its delta merged into the model that it started from."""
    out = root / stage / "merged"
    if not out.exists():
        merge(start, root / stage / "delta", out)
    return out
