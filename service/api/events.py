"""What happened in a job, as a list."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.api import render
from service.api.context import Parts, Reader
from service.api.pages import Paging, listed
from service.jobs import service

router = APIRouter(prefix="/fine_tuning/jobs")


@router.get("/{job_id}/events")
def index(parts: Parts, key: Reader, job_id: str, page: Paging) -> dict[str, Any]:
    """The job's events, newest first; with `order=asc`, as they happened."""
    events, more = service.read_events(parts.database, key.owner, job_id, page)
    return listed([render.event(event) for event in events], more)
