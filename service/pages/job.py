"""One job: its stages, curves, events, settings and files, live, and what its owner does with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import RedirectResponse

from allo_engine.config import CONFIGS
from allo_engine.rounds import kind_of
from service.api import artifacts, events, render
from service.api.context import Context, Parts, Reader, Submitter
from service.api.guard import COOKIE, PAGES
from service.api.live import EventStream
from service.api.reading import reading, shown
from service.jobs import history, series, service, story
from service.jobs.access.sessions import find_session
from service.jobs.errors import InvalidRequest
from service.jobs.lifecycle import JOB_ENDED, JobStatus, Priority
from service.jobs.repository import Page
from service.jobs.service import JobView
from service.jobs.tables import Stage
from service.pages.failures import wants_fragment
from service.pages.parts import leads_to
from service.pages.rendering import page
from service.pages.timeline import bars
from service.pages.words import setting_value

router = APIRouter(prefix="/jobs/{job_id}")

EVENTS = 60
"""That are shown at once."""

TURNS = 500
"""Beginnings and ends of attempts that the stages' courses are read from, the newest."""

POINTS = 500
"""Of each curve."""

Words = Annotated[str | None, Query(max_length=64)]


@router.get("")
@reading
def show(request: Request, parts: Parts, key: Reader, job_id: str) -> Response:
    """The whole page."""
    return page(request, "job.html", **whole(parts, key.owner, job_id))


@router.get("/live")
@reading
def live(request: Request, parts: Parts, key: Reader, job_id: str, left: int = 0) -> Response:
    """What changes while a job runs; what its stages left where that is more than the page has, `left` files."""
    return _shown(request, parts, service.read(parts.database, key.owner, job_id), left)


@router.get("/events")
@reading
def more_events(
    request: Request, parts: Parts, key: Reader, job_id: str, before: Annotated[int, Query(ge=0, le=2**53)]
) -> Response:
    """Earlier events."""
    return page(request, "job_events.html", job={"id": job_id}, **_events(parts, key.owner, job_id, before))


@router.get("/curves")
@reading
def curves(parts: Parts, key: Reader, job_id: str) -> Response:
    """{stage: {steps, figures: {name: values}}}, thinned out; a step that lacks a figure has null there."""
    found: dict[str, dict[str, Any]] = {}
    for points in series.read_thinned(parts.database, key.owner, job_id, POINTS):
        for point in points:
            stage = found.setdefault(point.stage, {"steps": [], "figures": {}})
            for name in point.values:
                stage["figures"].setdefault(name, [None] * len(stage["steps"]))
            stage["steps"].append(point.step)
            for name, values in stage["figures"].items():
                values.append(point.values.get(name))
    return shown(found)


@router.get("/stream")
def stream(
    request: Request,
    parts: Parts,
    key: Reader,
    job_id: str,
    after: Words = None,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    """The job's events as they happen, behind the last one that the page has; 204 once there can be no more."""
    seq, is_over = story.read_place(parts.database, key.owner, job_id, last_event_id or after)
    if is_over and seq:
        return Response(status_code=204)
    place = ExitStack()
    place.enter_context(parts.streams.open(key.owner))
    session = partial(find_session, parts.database, request.cookies[COOKIE])
    return EventStream(parts.feed.stream(key, job_id, seq, lambda: session() is not None), place)


@router.get("/metrics")
def metrics(
    parts: Parts, key: Reader, job_id: str, request: Request, format: Literal["csv", "tensorboard"] = "csv"
) -> Response:
    """The curves as a file."""
    answer = events.metrics(parts, key, job_id, request, None, format)
    assert isinstance(answer, Response)
    return answer


@router.get("/artifacts/{artifact_id}")
def download(parts: Parts, key: Reader, artifact_id: str, request: Request) -> Response:
    """One file that a stage wrote."""
    return artifacts.read_content(parts, key, artifact_id, request)


# --- what is done with it


async def _asked(request: Request) -> Priority:
    """The priority that the form has. Raises InvalidRequest."""
    word = str((await request.form()).get("priority", ""))
    try:
        return Priority.of(word)
    except KeyError:
        raise InvalidRequest("A priority is low, normal or high.", "priority") from None


async def _start(request: Request) -> str | None:
    """The stage from which the job is to be computed anew, where the form names one."""
    return str((await request.form()).get("from", "")) or None


@router.post("/cancel")
def cancel(request: Request, parts: Parts, key: Submitter, job_id: str) -> Response:
    return _shown(request, parts, service.cancel(parts.database, key.owner, job_id))


@router.post("/pause")
def pause(request: Request, parts: Parts, key: Submitter, job_id: str) -> Response:
    return _shown(request, parts, service.pause(parts.database, key.owner, job_id))


@router.post("/priority")
def prioritise(
    request: Request, parts: Parts, key: Submitter, job_id: str, priority: Annotated[Priority, Depends(_asked)]
) -> Response:
    admin = "admin" in key.scopes
    return _shown(request, parts, service.prioritise(parts.database, key.owner, job_id, priority, admin))


@router.post("/resume")
def resume(request: Request, parts: Parts, key: Submitter, job_id: str) -> Response:
    return _shown(request, parts, service.resume(parts.database, parts.store, key.owner, job_id))


@router.post("/retry")
def retry(
    request: Request, parts: Parts, key: Submitter, job_id: str, start: Annotated[str | None, Depends(_start)]
) -> Response:
    return _shown(request, parts, service.retry(parts.database, parts.store, key.owner, job_id, start))


@router.post("/delete")
def delete(request: Request, parts: Parts, key: Submitter, job_id: str) -> Response:
    service.delete(parts.database, key.owner, job_id)
    return leads_to(request, f"{PAGES}/jobs")


# --- what is shown


def whole(parts: Context, owner: str, job_id: str) -> dict[str, Any]:
    """What job.html shows."""
    view = service.read(parts.database, owner, job_id)
    return {
        "settings": [_settings(stage, view.job.seed) for stage in view.stages],
        "last": _last(parts, owner, job_id),
        **_events(parts, owner, job_id),
        **_live(parts, view),
    }


def _shown(request: Request, parts: Context, view: JobView, left: int = 0) -> Response:
    if not wants_fragment(request):
        return RedirectResponse(f"{PAGES}/jobs/{view.job.id}", 303)
    found = _live(parts, view)
    return page(request, "job_live.html", **{**found, "changed": found["left"] != left})


def _live(parts: Context, view: JobView) -> dict[str, Any]:
    """What job_live.html shows."""
    now = parts.database.now()
    job = render.job(view, now, list(parts.offers().values()))
    turns = story.read_turns(parts.database, view.job.id, TURNS)
    courses = history.courses(view.job, view.stages, turns, now)
    stages = [
        {**stage, "course": courses[stage["name"]], "bars": bars(view.job, courses[stage["name"]], now)}
        for stage in job["stages"]
    ]
    return {
        "job": job,
        "stages": stages,
        "estimates": _estimates(stages),
        "left": len(view.artifacts or ()) + len(view.job.result_files),
        "changed": False,
        "checkpoints": render.checkpoints(view),
        "name": view.job.suffix or view.job.id,
        "over": view.job.status in JOB_ENDED,
        "may_do": _may_do(view),
        "priorities": [priority.word for priority in Priority],
        "took": (view.job.finished_at or now) - view.job.created_at,
    }


def _may_do(view: JobView) -> list[str]:
    """What can be done with the job as it is."""
    status = view.job.status
    if status in JOB_ENDED:
        return ["delete"] if status is JobStatus.SUCCEEDED else ["retry", "delete"]
    if view.job.cancel_requested:
        return []
    return ["resume", "cancel"] if status is JobStatus.PAUSED else ["pause", "cancel"]


def _estimates(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was expected of each stage beside what came of it, of those that something was expected of."""
    return [
        {
            "name": stage["name"],
            "expected": stage["estimate"],
            "seconds": stage["metrics"].get("seconds") if stage["reused_from"] is None else None,
            "memory": stage["metrics"].get("peak_memory_bytes") if stage["reused_from"] is None else None,
            "reused": stage["reused_from"] is not None,
        }
        for stage in stages
        if stage["estimate"]
    ]


def _settings(stage: Stage, seed: int) -> dict[str, Any]:
    """A stage's settings, those that differ from the defaults first: (name, value, default, differs). The seed that all
    stages have of the job is no difference."""
    defaults = CONFIGS[kind_of(stage.name)]().model_dump(mode="json") | {"seed": seed}
    rows = [
        (name, setting_value(value), setting_value(defaults.get(name)), value != defaults.get(name))
        for name, value in stage.config.items()
    ]
    rows.sort(key=lambda row: not row[3])
    return {"name": stage.name, "rows": rows, "changed": sum(row[3] for row in rows)}


def _events(parts: Context, owner: str, job_id: str, before: int | None = None) -> dict[str, Any]:
    """What job_events.html shows: the newest events, of all or of those before number `before`."""
    found = story.read_messages(parts.database, owner, job_id, before, EVENTS + 1)
    told = [{"at": one.created_at, "level": one.level, "message": one.message} for one in found[:EVENTS]]
    return {"events": told, "earlier": found[EVENTS - 1].seq if len(found) > EVENTS else None}


def _last(parts: Context, owner: str, job_id: str) -> str | None:
    """The newest event of all, behind which the stream begins."""
    found, _ = service.read_events(parts.database, owner, job_id, Page(1))
    return found[0].id if found else None
