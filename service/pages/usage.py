"""What an owner takes: disk, jobs and the time of workers, and how much of it is allowed."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.context import Parts, Reader
from service.api.reading import reading
from service.jobs.data.usage import DAYS, read_usage
from service.pages.rendering import page

router = APIRouter(prefix="/usage")


@router.get("")
@reading
def index(request: Request, parts: Parts, key: Reader) -> Response:
    """The owner's."""
    settings = parts.settings
    found = read_usage(parts.database, key.owner)
    return page(
        request,
        "usage.html",
        usage=found,
        days=DAYS,
        most_bytes=settings.max_owner_bytes,
        most_jobs=settings.max_active_jobs,
        per_minute=settings.requests_per_minute,
    )
