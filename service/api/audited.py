"""Around every request with a key: an entry in the audit log where it would change something.

What is done once (see once.py) writes its entry in its own transaction; what was refused, and a repetition that did
nothing, is written here, after the answer.
"""

from __future__ import annotations

import logging

from anyio import to_thread
from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.scope import request_id
from service.db import Database
from service.jobs.access.audit import Deed, record
from service.jobs.tables import ApiKey
from service.settings import Settings

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})

log = logging.getLogger(__name__)


class Audited:
    """Writes what the route itself did not."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self._app, self._database, self._keep = app, database, settings.audit_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in CHANGING:
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            noted = scope["state"].get("audited", False) and status < 400
            if "route" in scope and "key" in scope["state"] and status != 405 and not noted:
                await to_thread.run_sync(self._write, deed_of(Request(scope), status))

    def _write(self, deed: Deed) -> None:
        try:
            record(self._database, deed, self._keep)
        except SQLAlchemyError as error:  # the answer is given: all that is left is to tell the operator
            log.warning("audit_failed verb=%s request_id=%s error=%r", deed.verb, deed.request_id, type(error).__name__)


def deed_of(request: Request, status: int, object_id: str | None = None) -> Deed:
    """What this request does; the thing that it is about is named by its path, unless the caller or the endpoint knows
    it."""
    key, endpoint = request.state.key, request.scope["endpoint"]
    assert isinstance(key, ApiKey)
    verb = f"{endpoint.__module__.rpartition('.')[2]}.{endpoint.__name__}"
    named = next(iter(request.path_params.values()), getattr(request.state, "about", None))
    address = request.client.host if request.client else None
    return Deed(key.id, key.owner, address, verb, object_id or named, status, request_id(request.scope))
