"""What went wrong, as a page; the statuses are the API's. For htmx it is a line of text, which the page shows."""

from __future__ import annotations

import logging
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from allo_engine.full import disk_is_full
from allo_engine.pipeline import PlanError
from service.api.errors import AWAY, FAILS, MESSAGES, disk_fails, status_of
from service.api.guard import PAGES
from service.api.scope import request_id
from service.jobs.errors import DomainError
from service.pages.entry import HOME, NotSignedIn
from service.pages.rendering import here, page
from service.storage.store import DiskFull, StoreAway, StoreError

log = logging.getLogger(__name__)


def add_failure_handlers(pages: FastAPI) -> None:
    """Makes every error of the pages an answer of theirs."""
    pages.add_exception_handler(NotSignedIn, _to_login)
    for meant in (DomainError, PlanError):
        pages.add_exception_handler(meant, _of_the_domain)
    for failed in (StoreError, StoreAway, DiskFull, OperationalError, PoolTimeout):
        pages.add_exception_handler(failed, _of_a_part)
    pages.add_exception_handler(RequestValidationError, _of_the_request)
    pages.add_exception_handler(HTTPException, _of_the_framework)
    pages.add_exception_handler(OSError, _of_the_machine)


def failure(request: Request, status: int, message: str) -> Response:
    """The message as a page, or as a line where a script asked."""
    if wants_fragment(request):
        return PlainTextResponse(message[:1000], status)
    return page(request, "failure.html", status, status=status, message=message[:4000])


def wants_fragment(request: Request) -> bool:
    """Whether htmx asks, which puts the answer into the page."""
    return "hx-request" in request.headers


def unforeseen(request: Request) -> Response:
    """The error is in the log; the user learns nothing of our insides, but has an id to report."""
    name = request_id(request.scope)
    return failure(request, 500, f"An error of this service, not of yours. Its id is {name}.")


async def _to_login(request: Request, _: Exception) -> Response:
    """A link from elsewhere comes without the cookie, however well its reader is signed in: the same page, asked for
    again by a page of ours, comes with it."""
    then = here(request) if request.method == "GET" else HOME
    login = f"{PAGES}/login?then={quote(then, safe='')}"
    if wants_fragment(request):
        return PlainTextResponse("You are no longer signed in.", 401, headers={"hx-redirect": login})
    if request.method == "GET" and request.headers.get("sec-fetch-site") == "cross-site":
        return page(request, "again.html", headers={"refresh": "0"})
    return RedirectResponse(login, 303)


async def _of_the_domain(request: Request, error: Exception) -> Response:
    assert isinstance(error, DomainError | PlanError)
    return failure(request, status_of(error), error.message)


async def _of_a_part(request: Request, error: Exception) -> Response:
    log.error("part_failed error=%r", getattr(error, "orig", None) or error)
    status = status_of(error)
    unread = f"Stored content cannot be read. The error's id is {request_id(request.scope)}."
    message = AWAY if isinstance(error, StoreAway) else MESSAGES.get(status, unread)
    return failure(request, status, message)


async def _of_the_machine(request: Request, error: Exception) -> Response:
    """A full disk, or one that fails; whatever else the machine did is unforeseen."""
    if disk_is_full(error):
        return await _of_a_part(request, error)
    if not disk_fails(error):
        raise error
    log.error("disk_failed error=%r", error)
    return failure(request, 503, FAILS)


async def _of_the_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()[:10])
    return failure(request, 422, f"Something of this request cannot be: {problems}.")


async def _of_the_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "There is no such page." if error.status_code == 404 else str(error.detail)
    return failure(request, error.status_code, message)
