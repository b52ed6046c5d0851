"""What the service costs beside the engine: the demo's job on half of its data, from its submission over HTTP to
its end, with one worker, against its stages one after another: by `python -m allo_engine`, and forked from a process
that has the engine loaded, as a worker forks them.

What the service adds is seconds a stage, and seconds for the bytes of its files. Neither grows with the data: of the
demo itself, it is half of this share. With much less data the small model answers nothing right: there are no pairs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from allo_engine.__main__ import preload
from allo_engine.pipeline import Data, plan
from service import demo
from service.demo_task import generate
from tests.benchmarks import material
from tests.benchmarks.case import Case
from tests.benchmarks.job import fork_stage, write_task
from tests.waiting import until

SHARE = 2
FILES = {"training_file": (demo.TRAIN_PROBLEMS, False), "validation_file": (demo.HELD_OUT_PROBLEMS, True)}
ALONE = {"ALLO_CALIBRATE_SECONDS": "0"}
"""A worker that is new measures itself once."""


def served() -> float:
    """Seconds from the submission to the end."""
    model = material.model()
    with tempfile.TemporaryDirectory() as folder, environment(ALONE), demo.serving(Path(folder)) as client:
        demo.allo("models", "add", "model", str(model), "--data-dir", folder)
        files = {name: client.upload(data / "data.jsonl")["id"] for name, data in _written(Path(folder)).items()}
        method = {"hyperparameters": demo.HYPERPARAMETERS, "stages": demo.STAGES}
        until(lambda: client.workers() and at_rest())  # it has the engine loaded
        began = time.perf_counter()
        job = client.submit({"model": "model", **files, "method": {"type": "allo", "allo": method}})["id"]
        events = list(client.live_events(job))
        took = time.perf_counter() - began
        assert client.job(job)["status"] == "succeeded", events
        return took


def bare() -> float:
    return _one_by_one(_execute)


def forked() -> float:
    preload()
    return _one_by_one(fork_stage)


def _one_by_one(run: Callable[[str, Path], None]) -> float:
    model = material.model()
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": model, **_written(Path(folder))}
        began = time.perf_counter()
        for stage in plan("allo", Data("problems", validation="problems"), demo.STAGES, demo.HYPERPARAMETERS):
            run(stage.name, write_task(Path(folder), stage, given))
        return time.perf_counter() - began


def _execute(name: str, task: Path) -> None:
    command = [sys.executable, "-m", "allo_engine", name, "--config", str(task)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def _written(folder: Path) -> Mapping[str, Path]:
    """Each file in a folder of its own."""
    written = {name: folder / name for name in FILES}
    for (count, held_out), path in zip(FILES.values(), written.values(), strict=True):
        path.mkdir()
        lines = [json.dumps(problem) for problem in generate(count // SHARE, seed=0, held_out=held_out)]
        (path / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """These settings, for what is started in the block."""
    before = dict(os.environ)
    os.environ |= settings
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def at_rest() -> bool:
    """Whether no process that was started from here computes."""
    before = _computed()
    time.sleep(1.0)
    return _computed() - before < 0.05


def _computed() -> float:
    """Seconds."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return float(sum(one.user + one.system for one in times))


def _case(rival: Callable[[], float], name: str, goal: float, limit: str) -> Case:
    measure = f"the demo's job on 1/{SHARE} of its data through the service, s"
    return Case(measure, served, rival, lambda: name, goal, False, limit)


_DUE = 0.03
CASES = (
    _case(bare, "its stages by python -m allo_engine", 1 + _DUE, "the engine"),
    _case(
        forked, "its stages forked from a loaded process", 1 + SHARE * _DUE, f"{_DUE:.0%} of the demo: as many seconds"
    ),
)
