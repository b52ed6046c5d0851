"""A form that is sent again, by a reload or an impatient finger, does what it did once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request

from service.api.audited import deed_of
from service.api.context import Context
from service.jobs.access.audit import record
from service.jobs.access.repetition import Answer, Call, once, sha256_of
from service.jobs.tables import ApiKey


def sent_once(
    parts: Context,
    key: ApiKey,
    request: Request,
    sending: str,
    do: Callable[[], Mapping[str, Any]],
    reissue: Callable[[Answer], Answer] | None = None,
) -> Answer:
    """What `do()` answers, or answered when the form with this `sending`, a word of its own, came before."""
    settings = parts.settings

    def note(answer: Answer) -> None:
        record(parts.database, deed_of(request, 200, answer.get("id")), settings.audit_seconds)
        request.state.audited = True

    windows = settings.retry_window_seconds, settings.idempotency_seconds
    fingerprint = sha256_of(request.method, request.url.path, sending)
    call = Call(key.id, fingerprint, None, f"form:{sending}" if sending else None, False, *windows, note)
    return once(parts.database, call, do, reissue)
