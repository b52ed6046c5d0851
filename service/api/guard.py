"""What happens to every request before any route sees it: an id, limits on its body, and its key or session."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from anyio import to_thread
from fastapi import Request
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import MESSAGES, answer
from service.api.limits import Allowance, AtOnce, Rates
from service.api.scope import request_id
from service.jobs.access.keys import KeyRing
from service.jobs.access.sessions import Session
from service.jobs.errors import TooMany
from service.jobs.tables import ApiKey
from service.settings import Settings

OPEN = ("/", "/healthz", "/readyz", "/v1/openapi.json")
"""Routes that want no key; the documentation is another, and tells nobody anything that is not public."""

PAGES = "/ui"
"""Where the dashboard is: the only routes that a session opens, and that no key of a header does."""

COOKIE = "allo_session"
"""What a browser keeps the session's token in. It is sent to the dashboard alone, and nothing else looks at it."""

FORM_OVERHEAD = 2**16
"""Bytes that a multipart form may have beside its file."""


class Guard:
    """Refuses early, before a body is read, and bounds what is read after."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        keys: KeyRing,
        rates: Rates,
        sessions: Callable[[str], Session | None],
    ) -> None:
        self._app, self._settings, self._keys, self._rates, self._sessions = app, settings, keys, rates, sessions
        self._open = AtOnce(settings.max_owner_requests, "requests")
        self._asked: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Future[ApiKey | None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._body_limit(scope)
        refusal = _bad_request(scope, limit) or await self._unknown_key(scope)
        allowance = self._rates.take(scope["state"]["key"].owner) if "key" in scope["state"] else None
        if allowance is not None and not allowance.taken:
            refusal = refusal or _too_many(scope, allowance)
        with ExitStack() as place:
            refusal = refusal or self._crowded(scope, place)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
            headers = {"x-request-id": request_id(scope), "x-content-type-options": "nosniff"}
            headers |= allowance.headers() if allowance else {}
            await self._app(scope, _limited(scope, receive, limit), _with_headers(send, headers))

    def _crowded(self, scope: Scope, place: ExitStack) -> Response | None:
        """Takes one of its owner's places for as long as the request is open."""
        try:
            if "key" in scope["state"]:
                place.enter_context(self._open.open(scope["state"]["key"].owner))
        except TooMany as error:
            return answer(Request(scope), 429, str(error), code=error.code)
        return None

    def _body_limit(self, scope: Scope) -> int:
        if scope["path"] in ("/v1/files", f"{PAGES}/files"):
            return self._settings.max_file_bytes + FORM_OVERHEAD
        if scope["path"].startswith("/v1/uploads/") and scope["path"].endswith("/parts"):
            return self._settings.max_part_bytes + FORM_OVERHEAD
        return self._settings.max_request_bytes

    async def _unknown_key(self, scope: Scope) -> Response | None:
        if scope["path"] in OPEN or scope["path"].startswith("/docs"):
            return None
        scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        request = Request(scope)
        try:
            if _is_page(scope["path"]):
                await self._find_session(request)
                return None
            key = await self._key(secret.strip()) if scheme.lower() == "bearer" else None
        except (OperationalError, PoolTimeout):
            return answer(request, 503, MESSAGES[503], code="database_unavailable")
        if key is None:
            wrong = "is not valid: it is unknown, revoked or expired" if secret else "is missing"
            message = f"The API key {wrong}. Send it as 'Authorization: Bearer KEY'; `allo keys` makes one."
            return answer(request, 401, message, code="invalid_api_key")
        scope["state"]["key"] = key
        return None

    async def _find_session(self, request: Request) -> None:
        """Whoever has none is let through all the same: pages say themselves what they tell a stranger."""
        token = request.cookies.get(COOKIE)
        session = await to_thread.run_sync(self._sessions, token) if token else None
        if session is not None:
            request.scope["state"] |= {"key": session.key, "session": session}

    async def _key(self, secret: str) -> ApiKey | None:
        found = self._keys.known(secret)
        return found if found or self._keys.is_unknown(secret) else await self._looked_up(secret)

    async def _looked_up(self, secret: str) -> ApiKey | None:
        """Once for all who come with it meanwhile: of thirty that poll, thirty would ask at the same moment. What an
        event loop asked, it alone can wait for: a server has one, a test's client one a request."""
        place = (asyncio.get_running_loop(), secret)
        asked = self._asked.get(place)
        if asked is None:
            asked = self._asked[place] = asyncio.ensure_future(to_thread.run_sync(self._keys.find, secret))
            asked.add_done_callback(lambda _: self._asked.pop(place))
        return await asyncio.shield(asked)  # whoever came first may go away


def _is_page(path: str) -> bool:
    return path == PAGES or path.startswith(f"{PAGES}/")


def _bad_request(scope: Scope, limit: int) -> Response | None:
    """What can be refused by the request's head alone."""
    request, headers = Request(scope), Headers(scope=scope)
    request_id(scope)
    if "\0" in scope["path"]:
        return answer(request, 404, MESSAGES[404], code="unknown_url")
    if b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
        return answer(request, 422, "A query parameter holds a NUL character.", code="invalid_value")
    if headers.get("content-encoding", "identity") != "identity":
        return answer(request, 415, "Send the body without Content-Encoding.", code="unsupported_encoding")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        return answer(request, 413, f"{MESSAGES[413]} The limit is {limit} bytes.", code="request_too_large")
    return None


def _too_many(scope: Scope, allowance: Allowance) -> Response:
    message = f"You have sent {allowance.limit} requests in a minute, which is your limit: slow down."
    headers = {"retry-after": str(math.ceil(allowance.wait)), **allowance.headers()}
    return answer(Request(scope), 429, message, code="rate_limit_exceeded", headers=headers)


def _limited(scope: Scope, receive: Receive, limit: int) -> Receive:
    """A body that ends in an error where it grows past the limit, whatever its Content-Length said; its sha256 as far
    as it was read stands in the state. A form's says nothing, as its boundary is drawn by chance."""
    received, total = 0, hashlib.sha256()
    scope["state"]["body"] = total
    is_form = Headers(scope=scope).get("content-type", "").lower().startswith("multipart/")

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        body = message.get("body", b"")
        received += len(body)
        if received > limit:
            raise HTTPException(413)
        if not is_form:
            total.update(body)
        return message

    return bounded


def _with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Puts the request's id, and what else every answer has, on the answer."""

    async def with_them(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return with_them
