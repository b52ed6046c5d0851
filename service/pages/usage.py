"""What an owner takes: disk, jobs and the time of workers, and how much of it is allowed."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.context import Parts, Reader
from service.api.reading import reading
from service.jobs.data.usage import DAYS, count_active, read_usage
from service.pages.parts import part
from service.pages.rendering import page

router = APIRouter(prefix="/usage")


@router.get("")
@reading
def index(request: Request, parts: Parts, key: Reader) -> Response:
    """The owner's limits; what is added up over all of their jobs the page asks for."""
    settings = parts.settings
    return page(
        request,
        "usage.html",
        active=count_active(parts.database, key.owner),
        most_jobs=settings.max_active_jobs,
        per_minute=settings.requests_per_minute,
    )


@router.get("/figures")
@reading
def figures(request: Request, parts: Parts, key: Reader) -> Response:
    """Disk, jobs and time."""
    found = read_usage(parts.database, key.owner)
    return part(request, "usage_figures.html", usage=found, days=DAYS, most_bytes=parts.settings.max_owner_bytes)
