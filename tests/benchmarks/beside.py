"""A training job beside what is measured: stage sft of a real model, in a process of its own as a worker starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks import material

SETTINGS = {"batch_size": 4, "n_epochs": 100, "template": material.TEMPLATE}
"""Small steps, and more of them than any measurement takes."""


@contextmanager
def training() -> Iterator[None]:
    """From its first step on until the end of the block, a stage trains with a thread a core."""
    with tempfile.TemporaryDirectory() as root:
        said = Path(root) / "said"
        with said.open("wb") as out:
            command = [sys.executable, "-m", "allo_engine", "sft", "--config", str(_task(Path(root)))]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        try:
            while '"steps"' not in said.read_text():
                assert process.poll() is None, f"the stage did not train: {said.read_text()}"
                time.sleep(0.1)
            yield
            assert process.poll() is None, "the stage ended before what was measured beside it"
        finally:
            process.kill()  # on SIGTERM it would write a checkpoint, which is of no use
            process.wait()


def _task(root: Path) -> Path:
    data = root / "data"
    data.mkdir()
    problems = [{"problem": one.problem, "solution": one.solution} for one in material.problems(400)]
    (data / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in problems))
    inputs = {"model": str(material.model()), "examples": str(data)}
    task = {"config": SETTINGS, "inputs": inputs, "outputs": str(root / "out"), "work": str(root / "work")}
    path = root / "stage.json"
    path.write_text(json.dumps(task))
    return path
