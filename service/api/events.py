"""What happened in a job: as a list, as a live stream, and its training's figures as series."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from service.api import render
from service.api.context import Parts, Reader
from service.api.download import held
from service.api.live import EventStream
from service.api.pages import Paging, listed
from service.jobs import series, service, story

router = APIRouter(prefix="/fine_tuning/jobs")


@router.get("/{job_id}/events", response_model=None)
def index(
    parts: Parts,
    key: Reader,
    job_id: str,
    page: Paging,
    request: Request,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response | dict[str, Any]:
    """The job's events, newest first; with `order=asc`, as they happened. With `Accept: text/event-stream` they come
    live, from the first one or from behind `Last-Event-ID`, and end with the job."""
    if not _takes_a_stream(request.headers.get("accept", "")):
        events, more = service.read_events(parts.database, key.owner, job_id, page)
        return listed([render.event(event) for event in events], more)
    seq, is_over = story.read_place(parts.database, key.owner, job_id, last_event_id or page.after)
    if is_over and seq:
        return Response(status_code=204)  # a browser that connects again stops at this
    place = ExitStack()
    place.enter_context(parts.streams.open(key.owner))
    return EventStream(parts.feed.stream(key, job_id, seq), place)


@router.get("/{job_id}/metrics", response_model=None)
def metrics(
    parts: Parts,
    key: Reader,
    job_id: str,
    request: Request,
    stage: Annotated[str | None, Query(max_length=32)] = None,
    format: Literal["json", "csv", "tensorboard"] = "json",
) -> Response | dict[str, Any]:
    """The figures of the job's training, a point a step: of one stage or of all that have some. CSV has a row a point;
    tensorboard is an event file, to be put into a folder that TensorBoard reads. Both take Range."""
    found = series.read(parts.database, key.owner, job_id, stage)
    if format == "csv":
        return held(request, b"".join(series.as_csv(found)), f"{job_id}.csv", "text/csv; charset=utf-8")
    if format == "tensorboard":
        name = f"events.out.tfevents.{found.began}.{job_id}"
        return held(request, b"".join(series.as_event_file(found)), name)
    return StreamingResponse(_list(found), media_type="application/json")


def _takes_a_stream(accept: str) -> bool:
    """Whether the header names the type of streams, and not to say that it is unwelcome."""
    for kind in accept.lower().split(","):
        name, *parameters = (part.strip() for part in kind.split(";"))
        if name == EventStream.media_type:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def _list(found: series.Series) -> Iterator[bytes]:
    """What `listed` makes of all points, as they are read."""
    first = last = None
    yield b'{"object":"list","data":['
    for points in found:
        rendered = [render.point(point) for point in points]
        yield (b"," if first else b"") + to_json(rendered, inf_nan_mode="null")[1:-1]
        first, last = first or rendered[0]["id"], rendered[-1]["id"]
    yield b"]," + to_json({"has_more": False, "first_id": first, "last_id": last})[1:]
