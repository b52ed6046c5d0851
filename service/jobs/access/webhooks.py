"""Endpoints that are told when a job ends, and what is due to them.

A delivery is a row, written in the very transaction that ends the job: none is lost, whichever process dies. It is made
at least once; its id, the same in every attempt, tells a receiver that it had it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs.errors import InvalidRequest, NotFound, QuotaExceeded
from service.jobs.ids import new_id
from service.jobs.lifecycle import JobStatus
from service.jobs.repository import Page, hooks
from service.jobs.tables import Job, WebhookDelivery, WebhookEndpoint

EVENT_TYPES: Mapping[JobStatus, str] = {
    JobStatus.SUCCEEDED: "fine_tuning.job.succeeded",
    JobStatus.FAILED: "fine_tuning.job.failed",
    JobStatus.CANCELLED: "fine_tuning.job.cancelled",
}

MOST_ENDPOINTS = 20
OVERLAP = 24 * 3600
"""For so many seconds after a rotation the secret before it signs too, where that was asked for."""

WAITS = (5, 60, 300, 1800, 3600, 2 * 3600, 5 * 3600, 8 * 3600, 8 * 3600)
"""Seconds between attempts: the last one comes a day after the first."""

CLAIM = 120
"""A delivery that a process took and said nothing of is due again after so many seconds: longer than it may take."""

KEPT = 30 * 24 * 3600
"""For so many seconds the log keeps what has been delivered or given up."""

Verdict = Literal["delivered", "again", "gone"]


@dataclass(frozen=True)
class Due:
    """A delivery to make: the secrets that sign it, the newest first."""

    id: str
    attempt: int
    url: str
    secrets: tuple[str, ...]
    body: bytes


def create(
    database: Database, owner: str, name: str, url: str, event_types: Sequence[str], secret: str
) -> WebhookEndpoint:
    """A new endpoint. Raises InvalidRequest for types that there are not, QuotaExceeded at the limit of endpoints."""
    with database.transaction() as session:
        if len(hooks.all_endpoints(session, owner)) >= MOST_ENDPOINTS:
            raise QuotaExceeded(f"You have {MOST_ENDPOINTS} webhook endpoints: delete one.", code="too_many_webhooks")
        now = database.now()
        row = WebhookEndpoint(id=new_id("whend"), owner=owner, name=name, url=url, created_at=now, updated_at=now)
        row.event_types, row.secret = _checked(event_types), secret
        session.add(row)
    return row


def read(database: Database, owner: str, endpoint_id: str) -> WebhookEndpoint:
    """One endpoint. Raises NotFound."""
    with database.snapshot() as session:
        return _owned(session, owner, endpoint_id)


def read_page(database: Database, owner: str, page: Page) -> tuple[list[WebhookEndpoint], bool]:
    """The owner's endpoints, and whether there are more. Raises NotFound for an unknown `page.after`."""
    with database.snapshot() as session:
        return hooks.endpoints(session, owner, page)


def change(
    database: Database,
    owner: str,
    endpoint_id: str,
    name: str | None = None,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
) -> WebhookEndpoint:
    """The endpoint with what is given changed. Raises NotFound, or InvalidRequest for types that there are not."""
    with database.transaction() as session:
        row = _owned(session, owner, endpoint_id)
        asked = {"name": name, "url": url, "event_types": None if event_types is None else _checked(event_types)}
        news = {field: value for field, value in asked.items() if value not in (None, getattr(row, field))}
        for field, value in news.items():
            setattr(row, field, value)
        if news:
            row.updated_at = database.now()
    return row


def rotate(database: Database, owner: str, endpoint_id: str, secret: str, keep_old: bool) -> WebhookEndpoint:
    """Gives the endpoint another secret; `keep_old`: for a day the old one signs as well. Raises NotFound."""
    with database.transaction() as session:
        row, now = _owned(session, owner, endpoint_id), database.now()
        row.old_secret, row.old_secret_until = (row.secret, now + OVERLAP) if keep_old else (None, None)
        row.secret, row.updated_at = secret, now
    return row


def reissue(database: Database, endpoint_id: str, secret: str) -> WebhookEndpoint:
    """Another secret for an endpoint whose owner never saw the first one. Raises NotFound."""
    with database.transaction() as session:
        row = hooks.anyones_endpoint(session, endpoint_id)
        if row is None:
            raise NotFound(f"No webhook endpoint {endpoint_id!r}.")
        row.secret = secret
    return row


def remove(database: Database, owner: str, endpoint_id: str) -> None:
    """Forgets an endpoint and all that was due to it. Raises NotFound."""
    with database.transaction() as session:
        row = _owned(session, owner, endpoint_id)
        hooks.delete_deliveries(session, row.id)
        session.delete(row)


def read_deliveries(database: Database, owner: str, endpoint_id: str, page: Page) -> tuple[list[WebhookDelivery], bool]:
    """What was and will be sent to an endpoint. Raises NotFound, for an unknown `page.after` too."""
    with database.snapshot() as session:
        _owned(session, owner, endpoint_id)
        return hooks.deliveries(session, endpoint_id, page)


def tell(session: Session, job: Job, now: int) -> None:
    """Writes what is due now that the job has ended."""
    kind = EVENT_TYPES[job.status]
    for endpoint in hooks.all_endpoints(session, job.owner):
        if kind in endpoint.event_types:
            event = message(kind, job.id, now)
            row = WebhookDelivery(id=event["id"], endpoint_id=endpoint.id, job_id=job.id, event_type=kind)
            row.payload, row.created_at, row.due_at, row.attempts = event, now, now, 0
            session.add(row)


def message(kind: str, job_id: str, now: int) -> dict[str, object]:
    """An event as the client's `unwrap` reads it."""
    return {"id": new_id("evt"), "object": "event", "created_at": now, "type": kind, "data": {"id": job_id}}


def signing(endpoint: WebhookEndpoint, now: int) -> tuple[str, ...]:
    """The endpoint's secrets that sign now."""
    old = endpoint.old_secret if (endpoint.old_secret_until or 0) > now else None
    return (endpoint.secret,) if old is None else (endpoint.secret, old)


def take_due(database: Database, most: int) -> list[Due]:
    """The deliveries that are due, as this caller's: nobody else gets them for `CLAIM` seconds."""
    with database.snapshot() as session:
        if not hooks.due_deliveries(session, database.now(), most):
            return []  # no lock of the writers' for a look
    with database.transaction() as session:
        now, found = database.now(), []
        for row, endpoint in hooks.due_deliveries(session, now, most, lock=True):
            row.attempts, row.due_at = row.attempts + 1, now + CLAIM
            body = json.dumps(row.payload).encode()
            found.append(Due(row.id, row.attempts, endpoint.url, signing(endpoint, now), body))
        return found


def record(database: Database, due: Due, status_code: int | None, error: str | None, verdict: Verdict) -> None:
    """Notes how an attempt went, and when the next one is due. What was taken again meanwhile is left alone."""
    with database.transaction() as session:
        row, now = hooks.delivery(session, due.id), database.now()
        if row is None or row.attempts != due.attempt:
            return
        row.status_code, row.error = status_code, error
        if verdict == "delivered":
            row.delivered_at, row.due_at = now, None
        elif verdict == "gone" or due.attempt > len(WAITS):
            row.due_at = None
        else:
            row.due_at = now + WAITS[due.attempt - 1]


def prune(database: Database) -> None:
    """Lets go of what the log need not keep any longer."""
    with database.transaction() as session:
        hooks.delete_old_deliveries(session, database.now() - KEPT)


def _owned(session: Session, owner: str, endpoint_id: str) -> WebhookEndpoint:
    row = hooks.endpoint(session, owner, endpoint_id)
    if row is None:
        raise NotFound(f"No webhook endpoint {endpoint_id!r}.")
    return row


def _checked(event_types: Sequence[str]) -> list[str]:
    if unknown := set(event_types) - set(EVENT_TYPES.values()):
        known = ", ".join(EVENT_TYPES.values())
        raise InvalidRequest(f"There is no event {sorted(unknown)[0]!r} here; there are {known}.", "event_types")
    if not event_types:
        raise InvalidRequest("Name at least one event type.", "event_types")
    return sorted(set(event_types))
