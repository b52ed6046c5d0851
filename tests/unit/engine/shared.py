"""Some stages, one after the other, on one rank."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from allo_engine.config import CONFIGS
from allo_engine.ranks import here
from allo_engine.report import Report


def run(task: dict[str, Any], root: Path, report: Report) -> None:
    """A stage's outputs in ROOT; the ranks behind the first write aside, as `python -m allo_engine` has it."""
    work, outputs = root / task["name"] / "work", root / task["name"] / "out"
    if not here().leads:
        work = work / "ranks" / str(here().rank)
        outputs = work / "outputs"
    inputs = {name: Path(folder) for name, folder in task["inputs"].items()}
    module = importlib.import_module(f"allo_engine.stages.{task['stage']}")
    metrics = module.run(CONFIGS[task["stage"]](**task["config"]), inputs, outputs, work, report)
    outputs.mkdir(parents=True, exist_ok=True)  # not every stage writes on every rank
    (outputs / "metrics.json").write_text(json.dumps(metrics))


def counted_together() -> None:
    """Each rank adds its number and one more; all see the sum."""
    first, second = here().tally(), here().tally()
    first(here().rank + 1)
    here().barrier()
    assert first(0) == sum(range(here().size + 1))
    assert second(0) == 0


def run_all(tasks: Sequence[dict[str, Any]], root: Path) -> None:
    for task in tasks:
        run(task, root, Report(io.StringIO()))
    counted_together()
