"""Queries about webhooks: the endpoints that are told of jobs, and what is on its way to them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.jobs.repository import Page, paged
from service.jobs.tables import WebhookDelivery, WebhookEndpoint


def endpoint(session: Session, owner: str, endpoint_id: str) -> WebhookEndpoint | None:
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.owner == owner)
    return session.scalar(query)


def anyones_endpoint(session: Session, endpoint_id: str) -> WebhookEndpoint | None:
    return session.get(WebhookEndpoint, endpoint_id)


def endpoints(session: Session, owner: str, page: Page) -> tuple[list[WebhookEndpoint], bool]:
    query = select(WebhookEndpoint).where(WebhookEndpoint.owner == owner)
    return paged(session, query, WebhookEndpoint.id, "whend", page)


def all_endpoints(session: Session, owner: str) -> Sequence[WebhookEndpoint]:
    return session.scalars(select(WebhookEndpoint).where(WebhookEndpoint.owner == owner)).all()


def deliveries(session: Session, endpoint_id: str, page: Page) -> tuple[list[WebhookDelivery], bool]:
    query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    return paged(session, query, WebhookDelivery.id, "evt", page)


def delivery(session: Session, delivery_id: str) -> WebhookDelivery | None:
    return session.scalar(select(WebhookDelivery).where(WebhookDelivery.id == delivery_id).with_for_update())


def due_deliveries(
    session: Session, now: int, most: int, lock: bool = False
) -> Sequence[tuple[WebhookDelivery, WebhookEndpoint]]:
    """The first that are due. With `lock` they are this transaction's alone, without those that are another's."""
    query = select(WebhookDelivery, WebhookEndpoint).join(WebhookEndpoint)
    query = query.where(WebhookDelivery.due_at <= now).order_by(WebhookDelivery.due_at).limit(most)
    if lock:
        query = query.with_for_update(skip_locked=True, of=WebhookDelivery)
    return [(row.WebhookDelivery, row.WebhookEndpoint) for row in session.execute(query)]


def delete_deliveries(session: Session, endpoint_id: str) -> None:
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id))


def delete_old_deliveries(session: Session, before: int) -> None:
    """Those that have come to an end."""
    old = delete(WebhookDelivery).where(WebhookDelivery.due_at.is_(None), WebhookDelivery.created_at < before)
    session.execute(old)
