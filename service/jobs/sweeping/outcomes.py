"""What a sweep found: the figure of every point, and which setting is best. Pure functions of its rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from allo_engine.pipeline import model_source
from service.jobs.lifecycle import JOB_ENDED, JobStatus, StageStatus
from service.jobs.sweeping.points import SEED, Point
from service.jobs.tables import Job, Stage

BETTER = {"accuracy": "higher", "cross_entropy": "lower"}
"""What an evaluation finds of a model, and which way is better."""


@dataclass(frozen=True)
class Figure:
    """A measure on the held-out file, and its 95 % interval where it has one."""

    measure: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Run:
    """The job of one point, with its stages in running order."""

    job: Job
    stages: Sequence[Stage]

    @property
    def point(self) -> Point:
        return self.job.sweep_point or {}

    @property
    def setting(self) -> Point:
        """The point without its seed, over which luck is averaged."""
        return {name: value for name, value in self.point.items() if name != SEED}

    @property
    def figure(self) -> Figure | None:
        """Of the job's aligned model, once it is evaluated."""
        found, name = self._metrics("evaluate"), self._result()
        for measure in BETTER:
            key = f"{name}_{measure}"
            if key in found:
                return Figure(measure, found[key], found.get(f"{key}_low"), found.get(f"{key}_high"))
        return None

    @property
    def best_validation_loss(self) -> float | None:
        """Of the last training, where that held a share out."""
        return self._metrics(self._result()).get("best_validation_loss")

    def _result(self) -> str:
        return model_source([stage.name for stage in self.stages]).split(".")[0]

    def _metrics(self, name: str) -> Mapping[str, Any]:
        done = (stage for stage in self.stages if stage.name == name and stage.status is StageStatus.SUCCEEDED)
        return next((stage.metrics for stage in done), {})


@dataclass(frozen=True)
class Best:
    """The setting whose runs have the best mean; `low` to `high` is the mean of their intervals, which averaging over
    seeds makes no wider. `rivals` other settings have a figure, of which `close` lie within that interval."""

    setting: Point
    job_ids: tuple[str, ...]
    figure: Figure
    rivals: int
    close: int


def status_of(jobs: Sequence[Job]) -> JobStatus:
    """A sweep's, as if it were one job: it has failed where one has, once all have ended."""
    found = {job.status for job in jobs}
    unended = found - JOB_ENDED
    if len(found) == 1 or unended == {JobStatus.PAUSED}:
        return (unended or found).pop()
    if unended:
        return JobStatus.RUNNING
    return JobStatus.FAILED if JobStatus.FAILED in found else JobStatus.CANCELLED


def best_of(runs: Sequence[Run]) -> Best | None:
    """By the held-out file's measure; None where nothing was evaluated yet."""
    groups = defaultdict[str, list[tuple[Run, Figure]]](list)
    for run in runs:
        if run.figure is not None:
            groups[repr(run.setting)].append((run, run.figure))
    means = {name: _mean([figure for _, figure in found]) for name, found in groups.items()}
    if not means:
        return None
    sign = 1 if BETTER[next(iter(means.values())).measure] == "higher" else -1
    name = max(means, key=lambda name: sign * means[name].value)
    won, others = means[name], [figure for other, figure in means.items() if other != name]
    close = [one for one in others if won.low is not None and won.high is not None and won.low <= one.value <= won.high]
    ids = tuple(run.job.id for run, _ in groups[name])
    return Best(groups[name][0][0].setting, ids, won, len(others), len(close))


def best_first(runs: Sequence[Run]) -> list[Run]:
    """The runs by their figures, and behind them those that have none."""

    def place(run: Run) -> tuple[bool, float]:
        if run.figure is None:
            return True, 0.0
        return False, run.figure.value * (-1 if BETTER[run.figure.measure] == "higher" else 1)

    return sorted(runs, key=place)


def notes(runs: Sequence[Run], best: Best | None) -> Iterator[str]:
    """In sentences: how far the choice of the best can be believed, and what is not known."""
    if not any(stage.name == "evaluate" for run in runs for stage in run.stages):
        yield "Nothing tells which point is best: a sweep with a validation_file is evaluated on that."
        return
    missing = sum(run.figure is None for run in runs)
    if missing:
        yield f"{missing} of {len(runs)} points have no figure."
    if best is None or not best.rivals:
        return
    if best.close:
        yield (
            f"{best.close} of the {best.rivals} other settings lie within the best one's interval: chance may have "
            "chosen. `allo compare` tells two of them apart case by case."
        )
    yield (
        "The best was chosen on the very file that its figure is of, which flatters it: submit its settings with "
        "another validation_file before you believe the figure. All but the evaluation is reused."
    )


def _mean(figures: Sequence[Figure]) -> Figure:
    lows = [figure.low for figure in figures if figure.low is not None]
    highs = [figure.high for figure in figures if figure.high is not None]
    value = fmean(figure.value for figure in figures)
    return Figure(figures[0].measure, value, fmean(lows) if lows else None, fmean(highs) if highs else None)
