"""What a job will take on a worker, from work that was counted and the worker's rates. Free of torch.

Counting a job takes seconds and a process of its own (count.py); to price it for another worker takes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allo_engine.estimate.costs import NOISE, disk_bytes, peak_bytes, seconds, work_bytes
from allo_engine.estimate.loads import Load, Work
from allo_engine.estimate.rates import Calibration
from allo_engine.rounds import kind_of


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


def price(work: Work, rates: Calibration) -> Estimate:
    """What a job will take on one worker of the kind that it was counted for, with one device for each stage."""
    return Estimate([_stage(views, work, rates) for views in work.views])


def _stage(views: Sequence[Load], work: Work, rates: Calibration) -> StageEstimate:
    expected = views[0]
    shape = work.rewriter if kind_of(expected.stage) == "reward_model" else work.model
    taken = [seconds(load, shape, rates, work.rewriter) for load in views]
    return StageEstimate(
        expected.stage,
        expected.tokens(),
        Band(min(taken) * (1 - NOISE), taken[0], max(taken) * (1 + NOISE)),
        peak_bytes(expected, shape, work.place, work.rewriter),
        disk_bytes(expected, shape),
        work_bytes(expected, shape, rates),
    )
