"""What a job will take, before anything runs: each stage's tokens, time, memory and disk, with an honest band."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from allo_engine.estimate.calibration import Calibration
from allo_engine.estimate.costs import NOISE, disk_bytes, peak_bytes, seconds, work_bytes
from allo_engine.estimate.excerpt import Excerpt, excerpt_of
from allo_engine.estimate.loads import Load
from allo_engine.estimate.priors import EXPECTED, FEWER, MORE
from allo_engine.estimate.workload import Workload
from allo_engine.model.loading import device
from allo_engine.model.shape import Shape, shape_of
from allo_engine.pipeline import METHODS, Data, Method, plan

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
    rewriter: Path | None = None

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
            inputs.get("rewriter"),
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
        views = [
            Workload(stages, job.model, excerpts, priors, job.seed, job.rewriter).loads()
            for priors in (EXPECTED, FEWER, MORE)
        ]
    model = shape_of(job.model)
    rewriter = shape_of(job.rewriter) if job.rewriter else model
    return Estimate([_stage(loads, model, rewriter, rates) for loads in zip(*views, strict=True)])


def _data(job: Job, files: Mapping[str, Excerpt]) -> Data:
    validation = files.get("validation_file")
    return Data(
        files["training_file"].format,
        validation=validation.format if validation else None,
        corrections="corrections_file" in files,
        masks=job.masks,
    )


def _stage(views: Sequence[Load], model: Shape, rewriter: Shape, rates: Calibration) -> StageEstimate:
    expected = views[0]
    shape = rewriter if expected.stage == "reward_model" else model
    taken = [seconds(load, shape, rates, rewriter) for load in views]
    return StageEstimate(
        expected.stage,
        expected.tokens(),
        Band(min(taken) * (1 - NOISE), taken[0], max(taken) * (1 + NOISE)),
        peak_bytes(expected, shape, device().type, rewriter),
        disk_bytes(expected, shape),
        work_bytes(expected, shape, rates),
    )
