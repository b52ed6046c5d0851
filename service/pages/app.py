"""The dashboard: an app of its own within the web process, mounted beside the API, over the same domain verbs.

Its routes want a session (see entry.py), answer in HTML, and are no part of the API's description. A page is a module
with a `router`, its templates, and a line of `NAVIGATION` where it is an entry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import RedirectResponse

from allo_engine.pipeline import METHODS
from service.api.context import Context
from service.api.guard import PAGES
from service.api.limits import Rates
from service.jobs import service
from service.jobs.errors import DomainError
from service.jobs.repository import Page
from service.jobs.repository.looking import Wanted
from service.pages import (
    assets,
    compare,
    entry,
    files,
    job,
    jobs,
    keys,
    learned,
    models,
    new,
    rendering,
    trying,
    usage,
    workers,
)
from service.pages.entry import signed_in
from service.pages.failures import add_failure_handlers
from service.pages.fields import settings_of
from service.pages.headers import Headers

_RESTS = 3

PARTS = (jobs, job, learned, compare, files, models, new, trying, workers, keys, usage)


def create_pages(context: Context) -> FastAPI:
    """The pages over these parts."""
    options: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None, "redirect_slashes": False}
    pages = FastAPI(**options)
    pages.state.context = context
    pages.state.tries = Rates(entry.TRIES_A_MINUTE)
    pages.add_middleware(Headers)
    add_failure_handlers(pages)
    for open_to_all in (assets.router, entry.router):
        pages.include_router(open_to_all)
    for part in PARTS:
        pages.include_router(part.router, dependencies=[Depends(signed_in)])
    return pages


def prepare(pages: FastAPI, stopped: threading.Event) -> None:
    """Does what the first who asks for a page would wait for: routes are put together, templates, the fields of *New
    job* and the statements of *Jobs* and *Job* are made. It rests for three times as long as each step takes, for it
    shares the interpreter with requests, and ends once it is stopped."""
    for step in _steps(pages):
        began = time.perf_counter()
        step()
        if stopped.wait(_RESTS * (time.perf_counter() - began)):
            return


def _steps(pages: FastAPI) -> Iterator[Callable[[], object]]:
    nowhere = {"type": "http", "method": "GET", "path": "", "root_path": "", "headers": []}
    yield from (partial(route.matches, nowhere) for route in pages.routes)
    yield from (partial(rendering.template, path.name) for path in sorted(rendering.TEMPLATES.glob("*.html")))
    yield from (partial(settings_of, method) for method in METHODS)
    yield partial(_look_once, pages.state.context)


def _look_once(parts: Context) -> None:
    """Asks what the list of jobs and a job's page ask, so that the database's library has seen it."""
    with suppress(SQLAlchemyError, DomainError):  # whoever asks first hears of it
        lines, _ = service.look_for(parts.database, Wanted(), Page(jobs.AT_ONCE))
        for line in lines[:1]:
            job.whole(parts, line.job.owner, line.job.id)


async def home(_: Request) -> RedirectResponse:
    """`/` leads to the first page."""
    return RedirectResponse(f"{PAGES}/jobs", 303)
