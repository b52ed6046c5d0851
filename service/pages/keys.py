"""Keys, for admins: who may use the service. A secret is shown once, on the page that answers its making."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, cast

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.api.context import Admin, Context, Parts
from service.api.guard import PAGES
from service.api.reading import reading
from service.jobs.access import keys
from service.jobs.access.keys import SCOPES, NewKey, Scope
from service.jobs.errors import InvalidRequest
from service.jobs.repository import Page
from service.pages.rendering import page
from service.pages.sending import sent_once

router = APIRouter(prefix="/keys")

AT_ONCE = 50
DAY = 86_400
HOME = f"{PAGES}/keys"

Word = Annotated[str, Form(max_length=200)]


@router.get("")
@reading
def index(
    request: Request, parts: Parts, _key: Admin, after: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """Every key, newest first."""
    return _shown(request, parts, after=after)


@router.post("")
def create(
    request: Request,
    parts: Parts,
    key: Admin,
    owner: Word = "",
    scopes: Annotated[list[str] | None, Form(max_length=len(SCOPES))] = None,
    days: Word = "",
    sending: Word = "",
) -> Response:
    """Makes a key. The same form sent again, as a reload does, is the same key with another secret."""

    def make() -> dict[str, str]:
        made = keys.create_key(parts.database, owner.strip(), cast(list[Scope], scopes or []), _expiry(parts, days))
        return {"id": made.id, "secret": made.secret}

    try:
        made = sent_once(parts, key, request, sending, make, lambda earlier: _rotated(parts, earlier["id"]))
    except InvalidRequest as error:
        typed = {"owner": owner, "scopes": scopes or [], "days": days}
        return _shown(request, parts, 422, typed=typed, wrong={error.param or "owner": error.message})
    request.state.about = made["id"]
    return _shown(request, parts, made=NewKey(made["id"], made["secret"]))


@router.post("/{key_id}/rotate")
def rotate(request: Request, parts: Parts, _key: Admin, key_id: str) -> Response:
    """Another secret; the old one opens nothing more."""
    made = _rotated(parts, key_id)
    return _shown(request, parts, made=NewKey(made["id"], made["secret"]))


@router.post("/{key_id}/revoke")
def revoke(parts: Parts, _key: Admin, key_id: str) -> Response:
    """Ends a key, and the sessions that it began."""
    keys.revoke_key(parts.database, key_id)
    parts.keys.forget(key_id)
    return RedirectResponse(HOME, 303)


def _rotated(parts: Context, key_id: str) -> dict[str, str]:
    made = keys.rotate_key(parts.database, key_id)
    parts.keys.forget(key_id)
    return {"id": made.id, "secret": made.secret}


def _expiry(parts: Context, days: str) -> int | None:
    if not days.strip():
        return None
    if not days.strip().isdecimal() or not 1 <= int(days) <= 36_500:
        raise InvalidRequest("A key lasts 1 to 36500 days, or for ever where nothing is said.", "days")
    return parts.database.now() + int(days) * DAY


def _shown(
    request: Request,
    parts: Context,
    status: int = 200,
    after: str | None = None,
    made: NewKey | None = None,
    typed: Mapping[str, object] | None = None,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    found, more = keys.read_keys(parts.database, Page(AT_ONCE, after))
    now = parts.database.now()
    return page(
        request,
        "keys.html",
        status,
        keys=[(row, keys.status(row, now)) for row in found],
        more=more,
        made=made,
        known=SCOPES,
        typed=typed or {"owner": "", "scopes": ["read", "submit"], "days": ""},
        wrong=wrong or {},
        sending=secrets.token_urlsafe(16),
    )
