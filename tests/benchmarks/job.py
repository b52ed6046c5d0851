"""The whole job, sft to evaluate: ours, a process a stage, against the same pipeline in the published way.

Ours forks each stage from a process that has the engine loaded, as a worker does; the rival has loaded its libraries
when its clock starts, too.

ALLO_BENCH_DATA names a file of problems with answers; without it the demo's arithmetic is taken. 200 problems are
trained on and the next 60 held out.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from allo_engine.__main__ import main, preload
from allo_engine.data.records import Problem
from allo_engine.pipeline import Data, PlannedStage, plan
from service.demo_task import generate
from tests.benchmarks import material
from tests.benchmarks.case import COMPUTE, Case

PROBLEMS, HELD_OUT = 200, 60


@dataclass(frozen=True)
class Settings:
    """Of both sides. Rates are five times the published ones, for a small model."""

    n: int = 4
    max_tokens: int = 64
    max_pairs: int = 3
    max_negatives: int = 2
    batch_size: int = 16
    ratio: float = 0.05
    sft_rate: float = 5e-5
    warmup_rate: float = 5e-6
    rewriter_rate: float = 1e-4
    forget_rate: float = 2.5e-6
    improve_rate: float = 2.5e-5


def template(problem: str) -> str:
    return material.TEMPLATE.replace("{problem}", problem)


def problems() -> tuple[list[Problem], list[Problem]]:
    """What is trained on, and what is held out."""
    found = material.given_problems(PROBLEMS + HELD_OUT) or [
        Problem(**line) for line in generate(PROBLEMS, 0) + generate(HELD_OUT, 1, held_out=True)
    ]
    return found[:PROBLEMS], found[PROBLEMS:]


def ours() -> dict[str, float]:
    preload()
    with tempfile.TemporaryDirectory() as root:
        trained, heldout = (_write(Path(root) / name, part) for name, part in zip(("t", "v"), problems(), strict=True))
        given = {"model": material.model(), "training_file": trained, "validation_file": heldout}
        began = time.perf_counter()
        for stage in plan("allo", Data("problems", validation="problems"), _stages(), _shorthand()):
            fork_stage(stage.name, write_task(Path(root), stage, given))
        return _figures(began)


def published() -> dict[str, float]:
    from tests.benchmarks.published import Published

    folder, (trained, heldout) = material.model(), problems()
    began = time.perf_counter()
    Published(folder, trained, heldout, Settings()).run()
    return _figures(began)


def _shorthand() -> dict[str, Any]:
    return {"template": material.TEMPLATE, "batch_size": Settings().batch_size, "n_epochs": 1}


def _stages() -> dict[str, dict[str, Any]]:
    settings = Settings()
    return {
        "sft": {"learning_rate": settings.sft_rate},
        "sample": {"n": settings.n, "max_response_tokens": settings.max_tokens},
        "pair": {"max_pairs": settings.max_pairs, "max_negatives": settings.max_negatives},
        "warmup": {"learning_rate": settings.warmup_rate},
        "locate": {"forget_ratio": settings.ratio, "improve_ratio": settings.ratio},
        "reward_model": {"learning_rate": settings.rewriter_rate, "max_negatives": 1},
        "forget": {"learning_rate": settings.forget_rate},
        "improve": {"learning_rate": settings.improve_rate},
        "evaluate": {"max_response_tokens": settings.max_tokens},
    }


def write_task(root: Path, stage: PlannedStage, given: Mapping[str, Path]) -> Path:
    """What the engine is told of a stage, with its folders below `root`."""
    folders = {
        key: str(root / source.replace(".", "/") if "." in source else given[source])
        for key, source in stage.inputs.items()
    }
    task = {
        "config": stage.config.model_dump(),
        "inputs": folders | {"cache": str(root / "cache")},
        "outputs": str(root / stage.name),
        "work": str(root / "work" / stage.name),
    }
    path = root / f"{stage.name}.json"
    path.write_text(json.dumps(task))
    return path


def fork_stage(name: str, task: Path) -> None:
    """Run a stage in a fork of this process, which has loaded the engine."""
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main([name, "--config", str(task)]))  # no clean-up here: the folders are the parent's
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError(f"stage {name} ended with {status}")
    print(f"{name} {time.perf_counter() - began:.1f} s", file=sys.stderr)


def _write(folder: Path, found: list[Problem]) -> Path:
    folder.mkdir()
    lines = [{"problem": one.problem, "solution": one.solution, "answer": one.answer} for one in found]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _figures(began: float) -> dict[str, float]:
    """Wall seconds, and the most that this process or one that it waited for held, bytes."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": time.perf_counter() - began, "peak": 1024.0 * max(peaks)}


def _case(measure: str, figure: str, goal: float, limit: str) -> Case:
    return Case(
        f"the whole job, {measure}",
        ours,
        published,
        lambda: f"transformers {version('transformers')} generate, TRL {version('trl')}, dense masked AdamW, topk",
        goal=goal,
        higher_is_better=False,
        limit=limit,
        figure=figure,
    )


CASES = (
    _case("wall s", "seconds", 1 / 3, COMPUTE),
    _case("peak bytes", "peak", 0.6, "16 bytes a weight where all are trained: warm-up, sft, reward model"),
)
