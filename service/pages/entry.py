"""Who may enter the dashboard: signing in with a key, signing out, and what every page asks of a request.

A session's token lies in a cookie that no script reads, that no other site's request carries, and that the browser
sends to the dashboard alone: the API never sees it. What changes something must come from a page of ours, as its
`Sec-Fetch-Site` or `Origin` says, and bring the session's own word along, in a header or a field of the form.
"""

from __future__ import annotations

import hmac
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from service.api.audited import CHANGING
from service.api.context import Parts
from service.api.guard import COOKIE, PAGES
from service.api.limits import Rates
from service.jobs.access import sessions
from service.jobs.access.sessions import Session
from service.jobs.errors import Forbidden, TooMany
from service.pages.rendering import page

router = APIRouter()

TRIES_A_MINUTE = 30
"""Keys that one address may try. Nobody guesses one; this keeps the log and the database calm."""

HOME = f"{PAGES}/jobs"


class NotSignedIn(Exception):
    """The request has no session that is still valid."""


async def signed_in(request: Request) -> None:
    """For every page: raises NotSignedIn without a session, and Forbidden for a change that no page of ours asked
    for."""
    session = getattr(request.state, "session", None)
    if session is None:
        raise NotSignedIn
    assert isinstance(session, Session)
    if request.method in CHANGING:
        _check_origin(request)
        word = request.headers.get("x-form-token") or await _field(request)
        if not isinstance(word, str) or not hmac.compare_digest(word.encode(), session.form_token.encode()):
            raise Forbidden("This form is of another session, or too old: load the page again.")


async def _field(request: Request) -> object:
    """The word where a form has it that no script sent. A form with a file is not read for it: only a script sends
    one, and it may be large."""
    is_large = request.headers.get("content-type", "").lower().startswith("multipart/")
    return None if is_large else (await request.form()).get("form_token")


def _check_origin(request: Request) -> None:
    """Browsers say where a request comes from, and no page can make them lie."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    same = site == "same-origin" if site is not None else origin is not None and _is_here(request, origin)
    if not same:
        raise Forbidden("This request does not come from a page of this dashboard.")


def _is_here(request: Request, origin: str) -> bool:
    return urlsplit(origin).netloc == request.headers.get("host")


@router.get("/login")
async def show_login(request: Request, then: str = HOME) -> Response:
    """The form that asks for a key."""
    if hasattr(request.state, "session"):
        return RedirectResponse(_local(then), 303)
    return page(request, "login.html", then=_local(then))


@router.post("/login")
def login(
    request: Request, parts: Parts, key: Annotated[str, Form()] = "", then: Annotated[str, Form()] = HOME
) -> Response:
    """Begins a session."""
    _check_origin(request)
    _count_try(request)
    made = sessions.sign_in(parts.database, key.strip(), parts.settings.session_seconds)
    if made is None:
        wrong = "This key is not valid: it is unknown, revoked or expired."
        return page(request, "login.html", 401, then=_local(then), wrong=wrong)
    request.state.key = made.key
    answer = RedirectResponse(_local(then), 303)
    answer.set_cookie(
        COOKIE,
        made.token,
        max_age=int(parts.settings.session_seconds),
        path=PAGES,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/logout")
async def logout(request: Request, parts: Parts) -> Response:
    """Ends the session."""
    await signed_in(request)
    sessions.sign_out(parts.database, request.cookies[COOKIE])
    answer = RedirectResponse(f"{PAGES}/login", 303)
    answer.delete_cookie(COOKIE, path=PAGES, httponly=True, samesite="strict")
    return answer


def _count_try(request: Request) -> None:
    tries = request.app.state.tries
    assert isinstance(tries, Rates)
    allowance = tries.take(request.client.host if request.client else "")
    if allowance is not None and not allowance.taken:
        raise TooMany("Too many keys were tried from here: wait a minute.")


def _local(path: str) -> str:
    """Where to go on: a page of ours, whatever the address said."""
    return path if path.startswith(f"{PAGES}/") and path.isprintable() and "\\" not in path else HOME
