"""Fine-tuning jobs: submitted, watched, paused, cancelled, run again."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.encoders import jsonable_encoder

from service.api import render
from service.api.context import Context, Parts, Reader, Submitter, is_json
from service.api.estimate import estimated, sender_of
from service.api.once import Calling, Once
from service.api.pages import Paging, listed, page_of
from service.api.query import Prefixed
from service.api.reading import reading, shown
from service.api.schemas import CreateJob, Prioritise, Retry
from service.jobs import comparison, service
from service.jobs.access.repetition import Call, once
from service.jobs.running.placement import Offer
from service.jobs.service import JobView
from service.jobs.tables import ApiKey

router = APIRouter(prefix="/fine_tuning/jobs", route_class=Once)

METADATA = Prefixed("metadata", at_most=16)
"""`metadata[name]=value`, as many as a job has at most."""


@router.post("", dependencies=[Depends(is_json)])
async def create(
    request: Request, parts: Parts, key: Submitter, call: Calling, body: CreateJob, dry_run: bool = False
) -> dict[str, Any]:
    """Submits a job. The same Idempotency-Key, or the client's own retry of this request, is the same job.

    With `dry_run=true` nothing is submitted: the answer is the job's estimate.
    """
    if dry_run:  # it waits for what a transaction must not wait for
        return await estimated(request, parts, key, body)
    return await to_thread.run_sync(_submit, parts, key, call, body)


def _submit(parts: Context, key: ApiKey, call: Call, body: CreateJob) -> dict[str, Any]:
    job = dict(once(parts.database, call, lambda: submit(parts, key, body)))
    parts.expectations.later(key.owner, job["id"])
    return job


def submit(parts: Context, key: ApiKey, body: CreateJob) -> dict[str, Any]:
    """A new job of the key's owner, as it is shown."""
    offers = _offers(parts)
    view = service.submit(parts.database, parts.store, body.asked(), sender_of(parts, key), offers)
    answer: dict[str, Any] = jsonable_encoder(render.job(view, parts.database.now(), offers))
    return answer


@router.get("", openapi_extra=METADATA.documented)
@reading
def index(parts: Parts, key: Reader, page: Paging, metadata: Annotated[dict[str, str], Depends(METADATA)]) -> Response:
    """The owner's jobs, newest first, without their artifacts; `metadata[k]=v` keeps those that have it."""
    views, more = service.read_page(parts.database, key.owner, page, metadata)
    now, offers = parts.database.now(), _offers(parts)
    return shown(listed([render.job(view, now, offers) for view in views], more))


Runs = Annotated[list[str], Query(min_length=1, max_length=comparison.MOST_RUNS)]


@router.get("/compare")
async def compare(parts: Parts, key: Reader, ours: Runs, theirs: Runs) -> dict[str, Any]:
    """Ours minus theirs, case by case on the held-out cases that all share: figures with their intervals, and the
    answers that changed.

    Each is `JOB` or `JOB:MODEL`, a model of the job's report (`sft`, `warmup`, `improve`, …); several, as many of each,
    are runs that differ in their seed.
    """
    asked = (parts.database, parts.store, key.owner, ours, theirs)
    return await to_thread.run_sync(comparison.compare, *asked, limiter=parts.comparing)


@router.get("/{job_id}")
async def read(parts: Parts, key: Reader, job_id: str) -> Response:
    """One job with its stages."""
    make = lambda: _shown(parts, service.read(parts.database, key.owner, job_id))  # noqa: E731
    return await parts.answers.get(("job", key.owner, job_id), make)


@router.delete("/{job_id}")
def delete(parts: Parts, key: Submitter, job_id: str) -> dict[str, Any]:
    """Forgets a job that has ended, with its models and their exports, its artifacts, its result files and its events.
    The files and the model that it was given stay, and so does what other jobs took over."""
    service.delete(parts.database, key.owner, job_id)
    return {"id": job_id, "object": "fine_tuning.job", "deleted": True}


@router.post("/{job_id}/cancel")
def cancel(parts: Parts, key: Submitter, job_id: str) -> dict[str, Any]:
    """Ends a job; it is `cancelled` once the stage that runs has stopped."""
    return _shown(parts, service.cancel(parts.database, key.owner, job_id))


@router.post("/{job_id}/priority")
def prioritise(parts: Parts, key: Submitter, job_id: str, body: Prioritise) -> dict[str, Any]:
    """Has what is yet to start of a job go before others', or behind."""
    admin = "admin" in key.scopes
    return _shown(parts, service.prioritise(parts.database, key.owner, job_id, body.meant(), admin))


@router.post("/{job_id}/pause")
def pause(parts: Parts, key: Submitter, job_id: str) -> dict[str, Any]:
    """Rests a job; the stage that runs stops at a checkpoint and gives its device back."""
    return _shown(parts, service.pause(parts.database, key.owner, job_id))


@router.post("/{job_id}/resume")
def resume(parts: Parts, key: Submitter, job_id: str) -> dict[str, Any]:
    """Lets a paused job go on from its checkpoints."""
    return _shown(parts, service.resume(parts.database, parts.store, key.owner, job_id))


@router.post("/{job_id}/retry")
def retry(parts: Parts, key: Submitter, job_id: str, body: Retry | None = None) -> dict[str, Any]:
    """Runs a failed or cancelled job again; finished stages are kept, but for those from a named one on."""
    asked = body or Retry()
    job = (parts.database, parts.store, key.owner, job_id)
    return _shown(parts, service.retry(*job, asked.from_, asked.max_seconds))


@router.get("/{job_id}/checkpoints")
def checkpoints(parts: Parts, key: Reader, job_id: str, page: Paging) -> dict[str, Any]:
    """The models that the job's stages left, newest first."""
    return page_of(render.checkpoints(service.read(parts.database, key.owner, job_id)), page)


@router.get("/{job_id}/artifacts")
def artifacts(parts: Parts, key: Reader, job_id: str) -> dict[str, Any]:
    """Every file that the job's stages wrote, in the stages' order."""
    view = service.read(parts.database, key.owner, job_id)
    return listed([file for stage in view.stages for file in render.artifacts(view, stage)])


def _shown(parts: Context, view: JobView) -> dict[str, Any]:
    return render.job(view, parts.database.now(), _offers(parts))


def _offers(parts: Context) -> list[Offer]:
    """What the workers that live have."""
    return list(parts.offers().values())
