"""Webhook endpoints, as the openai client manages them, and what was sent to them."""

from __future__ import annotations

import json
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends
from pydantic import Field, StringConstraints

from service.api import render
from service.api.context import Context, Parts, Reader, Submitter
from service.api.once import Calling, Once, reissues
from service.api.pages import Paging, listed
from service.api.schemas import PLAIN, Body
from service.jobs.access import webhooks
from service.jobs.access.repetition import Answer, Call, recalled, remember
from service.jobs.errors import InvalidRequest
from service.webhooks.addresses import check_url
from service.webhooks.signing import new_secret

router = APIRouter(prefix="/webhook_endpoints", route_class=Once)
tests = APIRouter(prefix="/webhook_endpoints")  # no transaction waits for a sample's receiver
types = APIRouter(prefix="/webhook_event_types")

Name = Annotated[str, StringConstraints(min_length=1, max_length=255), PLAIN]
Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=2048),
    PLAIN,
    Field(json_schema_extra={"pattern": r"^https?://[A-Za-z0-9.:\[\]-]+([/?][!-\"$-~]*)?$"}),
]
EventType = Annotated[
    str, StringConstraints(max_length=64), Field(json_schema_extra={"enum": [*webhooks.EVENT_TYPES.values()]})
]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=32)]


class CreateWebhook(Body):
    """POST /v1/webhook_endpoints."""

    name: Name
    url: Url
    event_types: EventTypes


class ChangeWebhook(Body):
    """POST /v1/webhook_endpoints/{id}: what is left out stays as it is."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class RotateSecret(Body):
    """POST /v1/webhook_endpoints/{id}/rotate_secret."""

    keep_old_secret_active_for_24_hours: bool = False


class TestWebhook(Body):
    """POST /v1/webhook_endpoints/{id}/test."""

    event_type: EventType


@types.get("")
def event_types(_key: Reader) -> dict[str, Any]:
    """What an endpoint can be told of."""
    return {"object": "list", "data": list(webhooks.EVENT_TYPES.values())}


async def _new_url(parts: Parts, _key: Submitter, body: CreateWebhook) -> None:
    await _check(parts, body.url)


async def _other_url(parts: Parts, _key: Submitter, body: ChangeWebhook) -> None:
    if body.url is not None:
        await _check(parts, body.url)


async def _check(parts: Context, url: str) -> None:
    """Before any transaction begins: whoever answers for the name may take their time, and nobody else waits."""
    await to_thread.run_sync(check_url, url, parts.settings.webhook_private, limiter=parts.strangers)


def _again(parts: Context, earlier: Answer) -> Answer:
    """An endpoint whose secret was lost on its way gets another one."""
    return render.webhook(webhooks.reissue(parts.database, earlier["id"], new_secret()), with_secret=True)


@router.post("", dependencies=[Depends(_new_url)])
@reissues(_again)
def create(parts: Parts, key: Submitter, body: CreateWebhook) -> dict[str, Any]:
    """Makes an endpoint. Its signing secret is shown in this answer alone."""
    row = webhooks.create(parts.database, key.owner, body.name, body.url, body.event_types, new_secret())
    return render.webhook(row, with_secret=True)


@router.get("")
def index(parts: Parts, key: Reader, page: Paging) -> dict[str, Any]:
    """The owner's endpoints, newest first."""
    found, more = webhooks.read_page(parts.database, key.owner, page)
    return listed([render.webhook(row) for row in found], more)


@router.get("/{endpoint_id}")
def read(parts: Parts, key: Reader, endpoint_id: str) -> dict[str, Any]:
    """One endpoint, without its secret."""
    return render.webhook(webhooks.read(parts.database, key.owner, endpoint_id))


@router.post("/{endpoint_id}", dependencies=[Depends(_other_url)])
def change(parts: Parts, key: Submitter, endpoint_id: str, body: ChangeWebhook) -> dict[str, Any]:
    """Changes what is given of an endpoint."""
    row = webhooks.change(parts.database, key.owner, endpoint_id, body.name, body.url, body.event_types)
    return render.webhook(row)


@router.delete("/{endpoint_id}")
def delete(parts: Parts, key: Submitter, endpoint_id: str) -> dict[str, Any]:
    """Forgets an endpoint; what was due to it is not sent."""
    webhooks.remove(parts.database, key.owner, endpoint_id)
    return {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/{endpoint_id}/rotate_secret")
@reissues(_again)
def rotate_secret(parts: Parts, key: Submitter, endpoint_id: str, body: RotateSecret | None = None) -> dict[str, Any]:
    """Gives the endpoint another secret, shown in this answer alone; for a day the old one may sign beside it."""
    keep = body is not None and body.keep_old_secret_active_for_24_hours
    row = webhooks.rotate(parts.database, key.owner, endpoint_id, new_secret(), keep)
    return render.webhook(row, with_secret=True)


@tests.post("/{endpoint_id}/test")
async def test(parts: Parts, key: Submitter, call: Calling, endpoint_id: str, body: TestWebhook) -> dict[str, Any]:
    """Sends a sample event now, and tells what the receiver answered."""
    if body.event_type not in webhooks.EVENT_TYPES.values():
        raise InvalidRequest(f"There is no event {body.event_type!r} here.", "event_type")
    asked = (parts, key.owner, call, endpoint_id, body.event_type)
    return dict(await to_thread.run_sync(_test, *asked, limiter=parts.strangers))


@router.get("/{endpoint_id}/deliveries")
def deliveries(parts: Parts, key: Reader, endpoint_id: str, page: Paging) -> dict[str, Any]:
    """What was sent and what is still due, newest first: each with its attempts and what the last one met."""
    found, more = webhooks.read_deliveries(parts.database, key.owner, endpoint_id, page)
    return listed([render.delivery(row) for row in found], more)


def _test(parts: Context, owner: str, call: Call, endpoint_id: str, event_type: str) -> Answer:
    """What the receiver answered, now or when this very request came before."""
    earlier = recalled(parts.database, call)
    if earlier is not None:
        return earlier
    answer = {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": endpoint_id,
        "event_type": event_type,
        "success": True,
        "status_code": _send_sample(parts, owner, endpoint_id, event_type),
    }
    remember(parts.database, call, answer)
    return answer


def _send_sample(parts: Context, owner: str, endpoint_id: str, event_type: str) -> int:
    from service.webhooks.sending import Undelivered, send  # here: it brings a client with it

    endpoint, now = webhooks.read(parts.database, owner, endpoint_id), parts.database.now()
    event = webhooks.message(event_type, "ftjob-sample", now)
    secrets, body = webhooks.signing(endpoint, now), json.dumps(event).encode()
    try:
        return send(endpoint.url, secrets, str(event["id"]), now, body, parts.settings.webhook_private)
    except Undelivered as error:
        raise InvalidRequest(f"The test was not delivered: {error}.", "url", "webhook_test_failed") from None
