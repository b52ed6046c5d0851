"""What a job will take, before anything runs: each stage's tokens, time, memory and disk, with an honest band.

    python -m allo_engine.estimate --config job.json           a table
    python -m allo_engine.estimate --config job.json --json    the same as JSON, in seconds and bytes

job.json names the job as it would be submitted, with folders and files of this machine:

    {"method": "allo",
     "stages": {"sft": {"n_epochs": 1}, "sample": {"n": 4, "max_response_tokens": 256}},
     "hyperparameters": {"batch_size": 16},
     "seed": 0,
     "inputs": {"model": "/models/smollm2",
                "training_file": "train.jsonl",
                "validation_file": "heldout.jsonl",
                "corrections_file": "corrections.jsonl"}}

All but "method", "inputs.model" and "inputs.training_file" may be left out. Up to 500 lines of each file are tokenised
and packed as the stages would do it; what models will answer is simulated (allo_engine/priors.py), and this machine's
speed is measured once, in some fifteen seconds (allo_engine/calibration.py; --again measures anew). The band spans
other views of what models answer, and a machine that is a fifth faster or slower than when it was measured.
"""

from __future__ import annotations

from allo_engine import calibration  # isort: skip - sets how torch waits, before torch

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from allo_engine.calibration import Calibration
from allo_engine.costs import NOISE, disk_bytes, peak_bytes, seconds, work_bytes
from allo_engine.excerpt import Excerpt, excerpt_of
from allo_engine.loads import Load
from allo_engine.memory import Shape, shape_of
from allo_engine.models import device
from allo_engine.pipeline import METHODS, Data, Method, PlanError, plan
from allo_engine.priors import EXPECTED, FEWER, MORE
from allo_engine.report import StageError
from allo_engine.workload import Workload

FILES = ("training_file", "validation_file", "corrections_file")


@dataclass(frozen=True)
class Job:
    """A job as job.json names it."""

    method: Method
    model: Path
    files: Mapping[str, Path]
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    masks: bool = False

    @classmethod
    def read(cls, path: Path) -> Job:
        """Raises OSError, ValueError, KeyError or TypeError where the file does not say what a job needs."""
        given = json.loads(path.read_text(encoding="utf-8"))
        if given["method"] not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}")
        inputs = {name: Path(where) for name, where in given["inputs"].items()}
        return cls(
            cast(Method, given["method"]),
            inputs["model"],
            {"training_file": inputs["training_file"], **{name: inputs[name] for name in FILES if name in inputs}},
            given.get("stages") or {},
            given.get("hyperparameters") or {},
            given.get("seed") or 0,
            "masks" in inputs,
        )


@dataclass(frozen=True)
class Band:
    """Seconds: what is expected, between what is likely the least and the most."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class StageEstimate:
    """One stage. `disk_bytes` is what its results take, `work_bytes` what it takes while it runs."""

    name: str
    tokens: int
    seconds: Band
    peak_memory_bytes: int
    disk_bytes: int
    work_bytes: int


@dataclass(frozen=True)
class Estimate:
    """A job's stages in running order."""

    stages: list[StageEstimate]

    def total(self) -> StageEstimate:
        """Tokens, seconds and results of all stages together; the most memory of any; the most disk at any time."""
        bands = [stage.seconds for stage in self.stages]
        before, most = 0, 0
        for stage in self.stages:
            most = max(most, before + stage.work_bytes)
            before += stage.disk_bytes
        return StageEstimate(
            "total",
            sum(stage.tokens for stage in self.stages),
            Band(sum(b.low for b in bands), sum(b.expected for b in bands), sum(b.high for b in bands)),
            max(stage.peak_memory_bytes for stage in self.stages),
            before,
            most,
        )


def estimate(job: Job, rates: Calibration) -> Estimate:
    """What a job will take on a machine of these rates.

    Raises PlanError or StageError where the job could not run, OSError or ValueError where a file cannot be read.
    """
    with tempfile.TemporaryDirectory() as root:
        excerpts = {name: excerpt_of(path, Path(root) / name, job.seed) for name, path in job.files.items()}
        stages = plan(job.method, _data(job, excerpts), job.stages, job.hyperparameters, job.seed)
        views = [Workload(stages, job.model, excerpts, priors, job.seed).loads() for priors in (EXPECTED, FEWER, MORE)]
    shape, where = shape_of(job.model), device().type
    return Estimate([_stage(loads, shape, rates, where) for loads in zip(*views, strict=True)])


def _data(job: Job, files: Mapping[str, Excerpt]) -> Data:
    validation = files.get("validation_file")
    return Data(
        files["training_file"].format,
        validation=validation.format if validation else None,
        corrections="corrections_file" in files,
        masks=job.masks,
    )


def _stage(views: Sequence[Load], shape: Shape, rates: Calibration, where: str) -> StageEstimate:
    expected = views[0]
    taken = [seconds(load, shape, rates) for load in views]
    return StageEstimate(
        expected.stage,
        expected.tokens(),
        Band(min(taken) * (1 - NOISE), taken[0], max(taken) * (1 + NOISE)),
        peak_bytes(expected, shape, where),
        disk_bytes(expected, shape),
        work_bytes(expected, shape, rates),
    )


def table_of(found: Estimate, machine: str) -> Table:
    table = Table(title=f"On {machine}", title_justify="left", show_footer=True)
    total = found.total()
    columns = ("stage", "tokens", "time", "between", "memory", "disk")
    for name, footer in zip(columns, _cells(total), strict=True):
        table.add_column(name, footer, justify="left" if name == "stage" else "right")
    for stage in found.stages:
        table.add_row(*_cells(stage))
    more = gigabytes(total.work_bytes)
    table.caption = f"Times are h:mm:ss. With checkpoints for resuming, disk reaches {more}."
    return table


def _cells(stage: StageEstimate) -> tuple[str, ...]:
    band = stage.seconds
    return (
        stage.name,
        f"{stage.tokens:,}",
        duration(band.expected),
        f"{duration(band.low)} – {duration(band.high)}",
        gigabytes(stage.peak_memory_bytes),
        gigabytes(stage.disk_bytes),
    )


def duration(taken: float) -> str:
    """Seconds as a clock shows them: 0:42, 5:17, 3:20:00."""
    minutes, rest = divmod(round(taken), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def as_json(found: Estimate, machine: str, rates: Calibration) -> dict[str, Any]:
    return {
        "machine": machine,
        "rates": asdict(rates),
        "stages": [asdict(stage) for stage in found.stages],
        "total": asdict(found.total()),
    }


def main() -> int:
    arguments = _parser().parse_args()
    try:
        job = Job.read(arguments.config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{arguments.config} does not name a job: {error!r}. --help shows one.", file=sys.stderr)  # noqa: T201
        return 2
    rates = calibration.calibrated(again=arguments.again)
    try:
        found = estimate(job, rates)
    except (PlanError, StageError, OSError, ValueError, KeyError) as error:
        print(f"This job cannot be estimated: {error}", file=sys.stderr)  # noqa: T201
        return 1
    machine = calibration.machine()
    if arguments.json:
        print(json.dumps(as_json(found, machine, rates), indent=2))  # noqa: T201
    else:
        Console().print(table_of(found, machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.estimate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the job, as shown above")
    parser.add_argument("--json", action="store_true", help="answer with JSON: seconds and bytes")
    parser.add_argument("--again", action="store_true", help="measure this machine anew")
    return parser


if __name__ == "__main__":
    sys.exit(main())
