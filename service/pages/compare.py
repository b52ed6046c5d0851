"""Two to six jobs beside one another, or points of a sweep: results, settings that differ, curves, models in pairs."""

from __future__ import annotations

import json
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
from service.jobs.errors import InvalidRequest
from service.jobs.lifecycle import StageStatus
from service.jobs.repository import Page
from service.jobs.repository.looking import Wanted
from service.jobs.service import JobView
from service.jobs.sweeping import sweeps
from service.jobs.sweeping.outcomes import Run
from service.jobs.tables import Job
from service.pages.charts import Bar
from service.pages.measures import Measure, named, with_interval
from service.pages.parts import part
from service.pages.rendering import page

router = APIRouter(prefix="/compare")

MOST = 6
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
    job: Annotated[list[Id] | None, Query()] = None,
    sweep: Annotated[Id | None, Query()] = None,
) -> Response:
    """The comparison of what was chosen; of a sweep without a choice, of its first points."""
    job = job or []
    if len(set(job)) > MOST:
        raise InvalidRequest(f"Choose two to {MOST} jobs; these are {len(set(job))}.")
    if sweep:
        offered = sweeps.read(parts.database, key.owner, sweep).jobs
    else:
        views, _ = service.look_for(parts.database, Wanted(key.owner), Page(OFFERED))
        offered = [view.job for view in views]
    ids = list(dict.fromkeys(job)) or [one.id for one in offered[:MOST] if sweep]
    columns = [
        Column(letter, service.read(parts.database, key.owner, job_id))
        for letter, job_id in zip("ABCDEF", ids, strict=False)
    ]
    offered += [column.view.job for column in columns if column.view.job.id not in {one.id for one in offered}]
    return page(
        request,
        "compare.html",
        sweep=sweep,
        offered=[(one, name_of(one)) for one in offered],
        chosen=ids,
        columns=columns,
        results=list(_results(columns)),
        measures=_measures(columns),
        differences=[
            (one.name, [written(value) for value in one.values])
            for one in differences([column.view.job for column in columns])
        ],
        stages=_trained(columns),
        pairs=[(column, column.models) for column in columns if column.models],
    )


def name_of(job: Job) -> str:
    """What tells a job from others: its point of a sweep, its suffix or its id."""
    if job.sweep_point:
        return ", ".join(f"{name} {written(value)}" for name, value in job.sweep_point.items())
    return job.suffix or job.id


def written(value: Any) -> str:
    """A setting's value."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    return sum(
        stage.finished_at - stage.started_at
        for stage in view.stages
        if stage.finished_at and stage.started_at and not stage.reused_from
    )


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
