"""Around every request: its id, its one line in the log, its place in the metrics, and whatever went wrong in it."""

from __future__ import annotations

import logging
import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import unforeseen
from service.api.meters import Meters
from service.api.scope import request_id
from service.logs import bound

log = logging.getLogger(__name__)

NO_ROUTE = "unmatched"
"""What the metrics call a path that no route has: they must not grow with what clients make up."""


class Access:
    """The outermost part. An error that nobody foresaw is logged here, once, with the request's id, and answered."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(receive, send)
        with bound(request_id=request_id(scope)):
            try:
                await self._app(scope, seen.receive, seen.send)
            except Exception:
                log.exception("request_failed method=%s path=%s", scope["method"], scope["path"])
                if seen.status is not None:
                    raise  # the answer has begun: all that is left is to cut it off
                await unforeseen(Request(scope))(scope, seen.receive, seen.send)
            finally:
                self._note(scope, seen)

    def _note(self, scope: Scope, seen: _Seen) -> None:
        route, seconds = _route(scope), time.perf_counter() - seen.began
        key = scope["state"].get("key")
        log.info(
            "request method=%s route=%s path=%s status=%s seconds=%s owner=%s key_id=%s client=%s",
            scope["method"],
            route,
            scope["path"],
            seen.status,
            round(seconds, 4),
            key and key.owner,
            key and key.id,
            (scope.get("client") or ("",))[0],
        )
        self._meters.request(scope["method"], route, seen.status, seconds, seen.received, seen.sent)


class _Seen:
    """What passes: the answer's status, and the bytes of both bodies."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.began = time.perf_counter()
        self.status: int | None = None
        self.received = self.sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.sent += len(message.get("body", b""))
        await self._send(message)


def _route(scope: Scope) -> str:
    """The path's template, such as /v1/files/{file_id}."""
    return str(getattr(scope.get("route"), "path", NO_ROUTE))
