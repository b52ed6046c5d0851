"""What trackers are told of jobs, and how far they have been: MLflow, Weights & Biases, trackio.

A tracking is a row beside the job. It remembers the last event that was told, so that whichever process dies, the next
one goes on from there. A job never waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.access.telling import Point, Telling
from service.jobs.access.trackers import TITLES, Integration
from service.jobs.ids import new_id
from service.jobs.lifecycle import JOB_ENDED, JobStatus
from service.jobs.progression import add_event
from service.jobs.repository import tracked
from service.jobs.series import read_point
from service.jobs.tables import Job, Stage, Tracking

MOST_POINTS = 2000
"""As many are told at a time."""

PERIOD = 30
"""Seconds between two tellings of a job that runs."""

WAITS = (30, 60, 300, 900, 3600)
"""Seconds before another attempt; every later one waits for the last."""

CLAIM = 300
"""What a process took and said nothing of is due again after so many seconds: longer than it may take."""

GIVEN_UP = 3 * 24 * 3600
"""So many seconds after the end of its job a tracking that still fails is given up."""


@dataclass(frozen=True)
class News:
    """What is to be told, where anything is; up to which event that goes, and whether more stands behind it."""

    id: str
    attempt: int
    telling: Telling | None
    seq: int
    more: bool
    status: str


def begin(session: Session, job: Job, integrations: Sequence[Integration], now: int) -> None:
    """Writes what is to be told of a job from now on."""
    for one in integrations:
        row = Tracking(id=new_id("track"), job_id=job.id, tracker=one["type"], settings=one[one["type"]], seq=0)
        row.steps, row.due_at, row.attempt, row.failures = {}, now, 0, 0
        session.add(row)


def take_due(database: Database, tracker: str, most: int) -> list[News]:
    """What is due to a tracker, as this caller's: nobody else gets it for `CLAIM` seconds."""
    with database.snapshot() as session:
        if not tracked.due(session, tracker, database.now(), most):
            return []  # no lock of the writers' for a look
    with database.transaction() as session:
        now, found = database.now(), []
        for row, job in tracked.due(session, tracker, now, most, lock=True):
            found.append(_news(session, row, job))
            row.attempt, row.failures, row.due_at = row.attempt + 1, row.failures + 1, now + CLAIM
        return found


def record(database: Database, news: News, run: str | None, error: str | None) -> None:
    """Notes how a telling went, and when the next one is due. What was taken again meanwhile is left alone.

    The job's events say once where it is told, and once why it is not.
    """
    with database.transaction() as session:
        row = tracked.get(session, news.id)
        job = None if row is None else repository.lock_job(session, row.job_id)
        row = tracked.get(session, news.id, lock=True)
        if row is not None and job is not None and row.attempt == news.attempt:
            _note(session, row, job, news, run, error, database.now())


def _note(session: Session, row: Tracking, job: Job, news: News, run: str | None, error: str | None, now: int) -> None:
    if error is not None:
        return _note_failure(session, row, job, error, now)
    row.seq, row.failures = news.seq, 0
    if news.telling is not None:
        row.told = news.status
        row.steps = {**row.steps, **{point.stage: point.step for point in news.telling.points}}
        if row.run is None:
            row.run = run
            message = f"{TITLES[row.tracker]} is told of this job, as run {run}."
            add_event(session, job, now, "info", message, {"tracker": row.tracker, "run": run})
    if news.more or job.status.value != news.status:
        row.due_at = now
    else:
        row.due_at = None if job.status in JOB_ENDED else now + PERIOD


def _note_failure(session: Session, row: Tracking, job: Job, error: str, now: int) -> None:
    title, first = TITLES[row.tracker], row.error is None
    row.error = error
    row.due_at = now + WAITS[min(row.failures, len(WAITS)) - 1]
    if job.finished_at is not None and now - job.finished_at >= GIVEN_UP:
        row.due_at = None
        add_event(session, job, now, "warn", f"{title} could not be told of this job: {error}.", {})
    elif first:
        message = f"{title} cannot be told of this job: {error}. The job goes on, and it is tried again."
        add_event(session, job, now, "warn", message, {"tracker": row.tracker})


def _news(session: Session, row: Tracking, job: Job) -> News:
    found = tracked.points_behind(session, job.id, row.seq, MOST_POINTS)
    more = len(found) == MOST_POINTS
    points = _unseen(row, found)
    status = row.told or JobStatus.RUNNING.value if more else job.status.value
    telling = _telling(session, row, job, points, status) if points or status != row.told else None
    return News(row.id, row.attempt + 1, telling, found[-1][0] if more else job.event_count, more, status)


def _unseen(row: Tracking, found: Sequence[tuple[int, dict[str, Any], int]]) -> list[Point]:
    """The points of steps that were not told: one that ran again after a break was."""
    steps, points = dict(row.steps), []
    for seq, data, at in found:
        point = read_point(data, at)
        if point is not None and point.values and point.step > steps.get(point.stage, -1):
            steps[point.stage] = point.step
            points.append(Point(seq, point.stage, point.step, at, point.values))
    return points


def _telling(session: Session, row: Tracking, job: Job, points: Sequence[Point], status: str) -> Telling:
    stages = repository.stages(session, [job.id])
    return Telling(
        id=row.id,
        tracker=row.tracker,
        place=None,  # whoever sends it knows what the operator allows by then
        settings=row.settings,
        run=row.run,
        doubtful=row.failures > 0,
        job=job.id,
        status=status,
        parameters=_parameters(job, stages),
        points=points,
        results=_results(stages) if status in JOB_ENDED else {},
    )


def _parameters(job: Job, stages: Sequence[Stage]) -> dict[str, str]:
    """What the job runs with, every default spelled out: `improve.learning_rate`."""
    own = {"model": job.model, "training_file": job.training_file, "method": job.method["type"], "seed": job.seed}
    settings = {f"{stage.name}.{name}": value for stage in stages for name, value in stage.config.items()}
    return {name: str(value) for name, value in {**own, **settings}.items() if value is not None}


def _results(stages: Sequence[Stage]) -> dict[str, float]:
    """The last figures of every stage, those of the report among them: `result/evaluate/improve_accuracy`."""
    return {
        f"result/{stage.name}/{name}": float(value)
        for stage in stages
        for name, value in stage.metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
