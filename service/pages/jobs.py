"""The list of jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api import render
from service.api.context import Parts, Reader
from service.api.reading import reading
from service.jobs import service
from service.jobs.repository import Page
from service.pages.rendering import page

router = APIRouter(prefix="/jobs")

AT_ONCE = 50


@router.get("")
@reading
def index(
    request: Request, parts: Parts, key: Reader, after: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """The owner's jobs, newest first."""
    views, more = service.read_page(parts.database, key.owner, Page(AT_ONCE, after))
    now = parts.database.now()
    offers = [worker.offer for worker in parts.workers()]
    return page(request, "jobs.html", jobs=[render.job(view, now, offers) for view in views], more=more)
