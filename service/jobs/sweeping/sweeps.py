"""Sweeps: one job at many points, each an ordinary job. A sweep is what its jobs are: there is no row of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from allo_engine.pipeline import PlannedStage, digest
from service.db import Database
from service.jobs import repository, service
from service.jobs.errors import InvalidRequest, NotFound
from service.jobs.forecast.foresight import Plan, foresee_all
from service.jobs.ids import new_id
from service.jobs.lifecycle import JOB_ENDED
from service.jobs.presence import asks_apart
from service.jobs.progression import advance
from service.jobs.repository import Page, swept
from service.jobs.running.placement import Offer
from service.jobs.submission import Admitted, NewJob, Sender, admit, check_limit, create, tell_missing
from service.jobs.sweeping.outcomes import Run
from service.jobs.sweeping.points import Point, Swept, at, points_of
from service.jobs.tables import Job
from service.storage.store import Store

SHARED = "another point of the sweep"
"""Whose result a stage takes over that an earlier point computes."""


@dataclass(frozen=True)
class SweepView:
    """A sweep and the runs of its points, in their order; a list reads no stages."""

    id: str
    runs: tuple[Run, ...]

    @property
    def jobs(self) -> list[Job]:
        return [run.job for run in self.runs]


@asks_apart
def submit(
    database: Database, store: Store, new: NewJob, values: Swept, sender: Sender, offers: Sequence[Offer]
) -> SweepView:
    """Makes a job for every point, or none at all.

    Raises what the submit of a job raises, for the first point that cannot run; InvalidRequest for too many points, and
    for two that are the same job; TooMany where the owner would have more unfinished jobs than allowed.
    """
    points = _points(values, sender)
    with database.transaction() as session:
        now, sweep_id = database.now(), new_id("ftsweep")
        check_limit(session, sender, now, len(points))
        admitted = [admit(session, store, at(new, point), sender, now) for point in points]
        _check_different(points, admitted)
        for point, one in zip(points, admitted, strict=True):
            job = create(session, one, now)
            job.sweep_id, job.sweep_point = sweep_id, dict(point)
            advance(session, store, job, now)
            tell_missing(session, job, repository.stages(session, [job.id]), offers, now)
        return read(database, sender.owner, sweep_id)


def foresee(
    database: Database, store: Store, new: NewJob, values: Swept, sender: Sender, offers: Mapping[str, Offer]
) -> list[tuple[Point, Plan]]:
    """What would come of a submit, point by point; nothing is written. A stage that is the same in several points is
    the first one's: to the others it is there already. Raises whatever the submit would raise."""
    points = _points(values, sender)
    plans = foresee_all(database, store, [at(new, point) for point in points], sender, offers)
    _check_different(points, [plan.admitted for plan in plans])
    made: set[str] = set()
    found = []
    for point, plan in zip(points, plans, strict=True):
        results = _results(plan.admitted.planned)
        shared = {name: SHARED for name, result in results.items() if result in made}
        found.append((point, replace(plan, reused={**shared, **plan.reused})))
        made |= set(results.values())
    return found


def read(database: Database, owner: str, sweep_id: str) -> SweepView:
    """The sweep, as far as its jobs are there. Raises NotFound."""
    with database.snapshot() as session:
        jobs = swept.jobs_of(session, owner, [sweep_id])
        if not jobs:
            raise NotFound(f"No sweep {sweep_id!r}.")
        stages = defaultdict(list)
        for stage in repository.stages_shown(session, [job.id for job in jobs]):
            stages[stage.job_id].append(stage)
        return SweepView(sweep_id, tuple(Run(job, stages[job.id]) for job in jobs))


def read_page(database: Database, owner: str, page: Page) -> tuple[list[SweepView], bool]:
    """Sweeps, and whether there are more. Raises NotFound for an unknown `page.after`."""
    with database.snapshot() as session:
        ids, more = swept.sweeps(session, owner, page)
        runs = defaultdict[str | None, list[Run]](list)
        for job in swept.jobs_of(session, owner, ids):
            runs[job.sweep_id].append(Run(job, ()))
        return [SweepView(sweep_id, tuple(runs[sweep_id])) for sweep_id in ids], more


def cancel(database: Database, owner: str, sweep_id: str) -> SweepView:
    """Cancels every job of the sweep that has not ended. Raises NotFound."""
    with database.transaction() as session:
        for job in swept.lock_jobs(session, owner, sweep_id):
            if job.status not in JOB_ENDED:
                service.cancel(database, owner, job.id)
        return read(database, owner, sweep_id)


def _points(values: Swept, sender: Sender) -> list[Point]:
    points = points_of(values)
    if len(points) > sender.max_active_jobs:
        message = f"The sweep has {len(points)} points, and you may have {sender.max_active_jobs} unfinished jobs."
        raise InvalidRequest(message, "sweep", "invalid_sweep")
    return points


def _results(planned: Sequence[PlannedStage]) -> dict[str, str]:
    """A name for what each stage makes, the same in every point of the sweep that makes the same."""
    made: dict[str, str] = {}
    for stage in planned:
        reads = {name: [(source, made.get(source.split(".")[0], ""))] for name, source in stage.inputs.items()}
        made[stage.name] = digest(stage.kind, stage.config.model_dump(mode="json"), reads)
    return made


def _check_different(points: Sequence[Point], admitted: Sequence[Admitted]) -> None:
    """Raises InvalidRequest where two points are the same job: a value that is given twice, or a hyperparameter that
    every stage has its own setting of."""
    seen: dict[tuple[str, ...], Point] = {}
    for point, one in zip(points, admitted, strict=True):
        first = seen.setdefault(tuple(f"{stage.name} {stage.config!r}" for stage in one.planned), point)
        if first is not point:
            told = f"{dict(first)!r:.200} and {dict(point)!r:.200}"
            raise InvalidRequest(f"Two points of the sweep are the same job: {told}.", "sweep", "invalid_sweep")
