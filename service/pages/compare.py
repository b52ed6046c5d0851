"""Two to six jobs beside one another, or points of a sweep: results, settings that differ, curves, models in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints

from allo_engine.pipeline import MODELS, TRAINED
from allo_engine.rounds import kind_of
from service.api.context import Parts, Reader
from service.api.reading import reading, shown
from service.db import Database
from service.jobs import comparison, series, service
from service.jobs.differences import differences
from service.jobs.lifecycle import StageStatus
from service.jobs.repository import Page
from service.jobs.repository.looking import Wanted
from service.jobs.service import JobView
from service.jobs.sweeping import sweeps
from service.jobs.sweeping.outcomes import Run, best_first
from service.jobs.tables import Job
from service.pages.charts import Bar
from service.pages.measures import Measure, named, with_interval
from service.pages.parts import part
from service.pages.rendering import page
from service.pages.words import setting_value

router = APIRouter(prefix="/compare")

LETTERS = "ABCDEF"
"""That jobs go by."""

MOST = len(LETTERS)
"""Jobs that are compared at once: more lines nobody tells apart."""

OFFERED = 50
"""Jobs that can be chosen from."""

POINTS = 400
"""Of a curve."""

ANSWERS = 20
"""Changed answers that are shown."""

Id = Annotated[str, StringConstraints(max_length=64)]
Model = Annotated[str, Query(min_length=1, max_length=160)]


@dataclass(frozen=True)
class Column:
    """A job, with the letter that it goes by."""

    letter: str
    view: JobView

    @property
    def name(self) -> str:
        return name_of(self.view.job)

    @property
    def run(self) -> Run:
        return Run(self.view.job, self.view.stages)

    @property
    def models(self) -> list[tuple[str, str]]:
        """(JOB:MODEL, what people call it) of each model that was evaluated."""
        done = any(stage.name == "evaluate" and stage.status is StageStatus.SUCCEEDED for stage in self.view.stages)
        made = [stage.name for stage in self.view.stages if kind_of(stage.name) in MODELS]
        return [(f"{self.view.job.id}:{name}", named(name)) for name in ("base", *made) if done]


@router.get("")
@reading
def show(
    request: Request,
    parts: Parts,
    key: Reader,
    job: Annotated[list[Id] | None, Query(max_length=OFFERED)] = None,
    sweep: Annotated[Id | None, Query()] = None,
    text: Annotated[str, Query(max_length=255)] = "",
) -> Response:
    """The comparison of what was chosen; of a sweep without a choice, of its best points."""
    runs = best_first(sweeps.read(parts.database, key.owner, sweep).runs) if sweep else []
    ids = list(dict.fromkeys(job or [run.job.id for run in runs[:MOST]]))
    chosen = [service.read(parts.database, key.owner, job_id) for job_id in ids]
    columns = [Column(*pair) for pair in zip(LETTERS, chosen, strict=False)] if len(chosen) <= MOST else []
    if not sweep:
        views, _ = service.look_for(parts.database, Wanted(key.owner, text=text.strip() or None), Page(OFFERED))
        runs = [Run(view.job, ()) for view in views]
    offered = {view.job.id: Run(view.job, view.stages) for view in chosen} | {run.job.id: run for run in runs}
    return page(
        request,
        "compare.html",
        sweep=sweep,
        text=text,
        offered=[(run.job, name_of(run.job), _told_figure(run) if sweep else None) for run in offered.values()],
        chosen=ids,
        left_out=len(runs) - len(ids) if sweep and not job else 0,
        too_many=max(len(chosen) - MOST, 0),
        columns=columns,
        results=list(_results(columns)),
        measures=_measures(columns),
        differences=[
            (one.name, [setting_value(value) for value in one.values])
            for one in differences([column.view.job for column in columns])
        ],
        stages=_trained(columns),
        pairs=[(column, column.models) for column in columns if column.models],
    )


def name_of(job: Job) -> str:
    """What tells a job from others: its point of a sweep, its suffix or its id."""
    if job.sweep_point:
        return ", ".join(f"{name} {setting_value(value)}" for name, value in job.sweep_point.items())
    return job.suffix or job.id


def _told_figure(run: Run) -> str | None:
    """`accuracy 62.4 %`, of a point of a sweep."""
    figure = run.figure
    if figure is None:
        return None
    value = with_interval(figure.value) if figure.measure == "accuracy" else f"{figure.value:.4g}"
    return f"{figure.measure.replace('_', '-')} {value}"


def _results(columns: Sequence[Column]) -> Iterator[tuple[str, list[Any], str]]:
    """(label, a value a job, the filter that writes it)."""
    yield "Time that its stages took", [_seconds(column.view) for column in columns], "duration"
    tokens = [[stage.metrics.get("trained_tokens", 0) for stage in column.view.stages] for column in columns]
    yield "Trained tokens", [sum(counts) for counts in tokens], "number"
    losses = [column.run.best_validation_loss for column in columns]
    if any(loss is not None for loss in losses):
        yield "Least validation loss", losses, "number"


def _seconds(view: JobView) -> int:
    """Of the stages that were computed here."""
    return round(sum(stage.seconds or 0 for stage in view.stages if stage.finished_at and not stage.reused_from))


def _measures(columns: Sequence[Column]) -> list[Measure]:
    """What was found of each job's result on its validation file."""
    figures = [(column, figure) for column in columns if (figure := column.run.figure)]
    accuracy = [
        Bar(f"{column.letter} {column.name}", one.value, with_interval(one.value, one.low, one.high), one.low, one.high)
        for column, one in figures
        if one.measure == "accuracy"
    ]
    losses = [
        Bar(f"{column.letter} {column.name}", one.value, f"{one.value:.4g}")
        for column, one in figures
        if one.measure == "cross_entropy"
    ]
    longest = max((bar.value for bar in losses), default=1.0)
    found = Measure("Accuracy", accuracy), Measure("Cross-entropy, nats a token: less is better", losses, longest)
    return [measure for measure in found if measure.bars]


def _trained(columns: Sequence[Column]) -> list[str]:
    """The stages that have curves in any of the jobs, the last first."""
    names = dict.fromkeys(stage.name for column in columns for stage in column.view.stages)
    return [name for name in reversed(names) if kind_of(name) in TRAINED]


# --- curves


@router.get("/curves")
@reading
def curves(
    parts: Parts, key: Reader, job: Annotated[list[Id], Query()], stage: Annotated[str, Query(max_length=32)]
) -> Response:
    """[{steps, figures: {name: values}}], a job's each, of one stage; empty for a job without it."""
    return shown([_course(parts.database, key.owner, job_id, stage) for job_id in job[:MOST]])


def _course(database: Database, owner: str, job_id: str, stage: str) -> dict[str, Any]:
    told = series.read_thinned(database, owner, job_id, POINTS)
    points = [point for some in told for point in some if point.stage == stage]
    names = dict.fromkeys(name for point in points for name in point.values)
    figures = {name: [point.values.get(name) for point in points] for name in names}
    return {"steps": [point.step for point in points], "figures": figures}


# --- two models


@router.get("/paired")
async def paired(request: Request, parts: Parts, key: Reader, ours: Model, theirs: Model) -> Response:
    """One model minus another, case by case, and the answers that changed."""
    asked = (parts.database, parts.store, key.owner, [ours], [theirs])
    found = await to_thread.run_sync(comparison.compare, *asked, limiter=parts.comparing)
    changed = found["changed"]
    return part(
        request,
        "compare_paired.html",
        ours=_told(ours),
        theirs=_told(theirs),
        found=found,
        answers=changed["shown"][:ANSWERS] if changed else [],
    )


def _told(run: str) -> tuple[str, str]:
    """(job, what its model is called)."""
    job_id, _, model = run.partition(":")
    return job_id, named(model) if model else "the last model"
