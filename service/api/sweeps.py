"""Sweeps: one job at many points, each an ordinary job, with a table at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from service.api.context import Context, Parts, Reader, Submitter, is_json
from service.api.estimate import estimated_sweep, sender_of
from service.api.once import Calling, Once
from service.api.pages import Paging, listed
from service.api.reading import reading, shown
from service.api.schemas import CreateSweep
from service.jobs.access.repetition import Call, once
from service.jobs.estimates import job_fraction
from service.jobs.sweeping import outcomes, sweeps
from service.jobs.sweeping.outcomes import BETTER, Figure, Run
from service.jobs.sweeping.sweeps import SweepView
from service.jobs.tables import ApiKey

router = APIRouter(prefix="/fine_tuning/sweeps", route_class=Once)

Json = dict[str, Any]


@router.post("", dependencies=[Depends(is_json)])
async def create(parts: Parts, key: Submitter, call: Calling, body: CreateSweep) -> Json:
    """Submits a job at every point of a grid of settings, or none at all. Stages that are the same in several of the
    jobs are computed once."""
    return await to_thread.run_sync(_submit, parts, key, call, body)


def _submit(parts: Context, key: ApiKey, call: Call, body: CreateSweep) -> Json:
    def submit() -> Json:
        offers = list(parts.offers().values())
        sender = sender_of(parts, key)
        return _whole(sweeps.submit(parts.database, parts.store, body.asked(), body.sweep, sender, offers))

    found = dict(once(parts.database, call, submit))
    for point in found["points"]:
        parts.expectations.later(key.owner, point["job_id"])
    return found


@router.post("/estimate", dependencies=[Depends(is_json)])
async def estimate(request: Request, parts: Parts, key: Reader, body: CreateSweep) -> Json:
    """What a sweep would take, all of its points together. A stage that several points share is the first one's.

    What a submit refuses, this refuses with the same error. Whoever may read may ask.
    """
    return await estimated_sweep(request, parts, key, body)


@router.get("")
@reading
def index(parts: Parts, key: Reader, page: Paging) -> Response:
    """The owner's sweeps, newest first, without their points."""
    views, more = sweeps.read_page(parts.database, key.owner, page)
    return shown(listed([_head(view) for view in views], more))


@router.get("/{sweep_id}")
async def read(parts: Parts, key: Reader, sweep_id: str) -> Response:
    """One sweep: what was found at every point, and which setting is best on the validation file."""
    make = lambda: _whole(sweeps.read(parts.database, key.owner, sweep_id))  # noqa: E731
    return await parts.answers.get(("sweep", key.owner, sweep_id), make)


@router.post("/{sweep_id}/cancel")
def cancel(parts: Parts, key: Submitter, sweep_id: str) -> Json:
    """Cancels every job of a sweep that has not ended; the others stay as they are."""
    return _whole(sweeps.cancel(parts.database, key.owner, sweep_id))


def _head(view: SweepView) -> Json:
    first = view.jobs[0]
    return {
        "id": view.id,
        "object": "fine_tuning.sweep",
        "created_at": first.created_at,
        "model": first.model,
        "training_file": first.training_file,
        "validation_file": first.validation_file,
        "status": outcomes.status_of(view.jobs).value,
        "jobs": dict(Counter(job.status.value for job in view.jobs)),
    }


def _whole(view: SweepView) -> Json:
    best = outcomes.best_of(view.runs)
    chosen = None
    if best is not None:
        chosen = {"setting": best.setting, "job_ids": list(best.job_ids), "figure": _figure(best.figure)}
    return {
        **_head(view),
        "points": [_point(run) for run in view.runs],
        "best": chosen,
        "notes": list(outcomes.notes(view.runs, best)),
    }


def _point(run: Run) -> Json:
    return {
        "point": dict(run.point),
        "job_id": run.job.id,
        "status": run.job.status.value,
        "progress": round(job_fraction(run.stages), 4),
        "fine_tuned_model": run.job.fine_tuned_model,
        "figure": None if run.figure is None else _figure(run.figure),
        "best_validation_loss": run.best_validation_loss,
    }


def _figure(figure: Figure) -> Json:
    return {**asdict(figure), "better": BETTER[figure.measure]}
