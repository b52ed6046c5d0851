"""Trainings by TRL, one after the other, on some ranks.

The root holds a model and its data. What is left of each case stands in the folder of its name: a checkpoint, what was
reported, and what ended each rank.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allo_engine.config import CONFIGS
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped
from allo_engine.stages import sft, warmup
from tests.tiny import save_tiny
from tests.unit.engine.conftest import Lines
from tests.unit.engine.processes import as_ranks

SLOWLY: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 4, "n_epochs": 2, "epsilon": 1e-3}
"""Settings under which a rounding stays one: Adam's first steps are signs where epsilon is small."""

ITEMS = 9
"""The last batch of an epoch has one: of two ranks, one has none."""


@dataclass(frozen=True)
class Case:
    """A stage's training. Its last rank is asked to stop behind step `stop`; it `resumes` another case's."""

    name: str
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    stop: int = 0
    resumes: str = ""


class Watching(Report):
    """Asks to stop when a given step was told."""

    def __init__(self, step: int = 0) -> None:
        self.stream = Lines()
        super().__init__(self.stream, every_seconds=0)
        self._step = step

    def progress(self, step: int, total: int, metrics: Any = None) -> None:
        super().progress(step, total, metrics)
        if metrics and metrics["step"] == self._step:
            self.stop_requested = True


def text(source: random.Random, most: int) -> str:
    return "".join(source.choice("abcdefgh ") for _ in range(source.randrange(1, most)))


def write_preferences(folder: Path, count: int) -> Path:
    """Pairs, each of a prompt of its own, of unlike lengths."""
    source = random.Random(0)
    lines = [
        {"prompt": f"{number} {text(source, 12)}", "chosen": text(source, 20), "rejected": text(source, 20)}
        for number in range(count)
    ]
    return _written(folder, lines)


def write_solved(folder: Path, count: int) -> Path:
    source = random.Random(1)
    lines = [{"problem": f"{number} {text(source, 12)}", "solution": text(source, 20)} for number in range(count)]
    return _written(folder, lines)


def _written(folder: Path, lines: Sequence[dict[str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_material(root: Path) -> Path:
    save_tiny(root / "model")
    write_preferences(root / "pairs", ITEMS)
    write_solved(root / "examples", ITEMS)
    return root


def launch(root: Path, size: int, cases: Sequence[Case]) -> None:
    """Cases on so many processes, which have no compiler."""
    without = {"CXX": "false", "TORCH_EXTENSIONS_DIR": str(root / "none")}
    as_ranks(size, root / f"ranks{size}", _run_all, cases, root, environment=without)


def _run_all(cases: Sequence[Case], root: Path) -> None:
    for case in cases:
        run(case, root)


def run(case: Case, root: Path) -> None:
    ranks = here()
    report = Watching(case.stop if ranks.rank == ranks.size - 1 else 0)
    work, out = (root / (case.resumes or case.name) / "work" / str(ranks.rank), root / case.name / str(ranks.rank))
    inputs = {"model": root / "model", "pairs": root / "pairs", "examples": root / "examples"}
    config: Any = CONFIGS[case.stage](trainer="trl", **(SLOWLY | case.settings))
    said = ""
    try:
        {"sft": sft, "warmup": warmup}[case.stage].run(config, inputs, out, work, report)
    except Stopped:
        said = "stopped"
    except StageError as error:
        said = error.code
    endings = ranks.gathered(said)
    if ranks.leads:
        (root / case.name).mkdir(exist_ok=True)
        (root / case.name / "lines.jsonl").write_text(report.stream.getvalue())
        (root / case.name / "endings.json").write_text(json.dumps(endings))
