"""Routes that change something: what they do, they do once, however often a client that got no answer asks.

A router made with `APIRouter(route_class=Once)` has this for every POST, PUT, PATCH and DELETE that is a plain `def`
with `parts`, takes no form and answers an object. An upload, whose body is a stream, takes `Calling` and calls
`repetition.once` itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

from fastapi import Depends, Header, Request, UploadFile
from fastapi.encoders import jsonable_encoder
from fastapi.routing import APIRoute

from service.api.audited import CHANGING, deed_of
from service.api.context import Context, Parts
from service.jobs.access.audit import record
from service.jobs.access.repetition import Answer, Call, once, sha256_of
from service.jobs.tables import ApiKey

Endpoint = Callable[..., Any]


async def _call(
    request: Request,
    parts: Parts,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    x_stainless_retry_count: Annotated[int, Header(include_in_schema=False)] = 0,
) -> Call:
    key = request.state.key
    assert isinstance(key, ApiKey)
    query, body = request.url.query, request.state.body.hexdigest()
    fingerprint = sha256_of(request.method, request.url.path, query, body)
    settings = parts.settings
    windows = settings.retry_window_seconds, settings.idempotency_seconds

    def note(answer: Answer) -> None:
        record(parts.database, deed_of(request, 200, answer.get("id")), settings.audit_seconds)
        request.state.audited = True

    return Call(key.id, fingerprint, _subject(request), idempotency_key, x_stainless_retry_count > 0, *windows, note)


def _subject(request: Request) -> str | None:
    """`/v1/fine_tuning/jobs/ftjob-1` of a request to that or to its `/cancel`; None of one that makes a job."""
    if not request.path_params:
        return None
    path = request.url.path
    return path if request.scope["route"].path.endswith("}") else path.rpartition("/")[0]


Calling = Annotated[Call, Depends(_call)]
"""What tells a repetition of this request from a new one."""


class Once(APIRoute):
    """A route that does what it changes once."""

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        if CHANGING & set(options.get("methods") or ()) and _can_be_done_once(endpoint):
            endpoint = _done_once(endpoint)
        super().__init__(path, endpoint, **options)


def _can_be_done_once(endpoint: Endpoint) -> bool:
    """Whether the endpoint is neither done once already nor fed by a stream, for which no transaction waits."""
    taken = [parameter.annotation for parameter in inspect.signature(endpoint, eval_str=True).parameters.values()]
    return not (hasattr(endpoint, "done_once") or inspect.iscoroutinefunction(endpoint) or UploadFile in taken)


def reissues(again: Callable[[Context, Answer], Answer]) -> Callable[[Endpoint], Endpoint]:
    """For an endpoint whose answer holds a secret: `again` makes the answer whole, with a new secret, for a client that
    never saw the first one."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.reissue = again  # type: ignore[attr-defined]
        return endpoint

    return mark


def _done_once(endpoint: Endpoint) -> Endpoint:
    again = getattr(endpoint, "reissue", None)

    @wraps(endpoint)
    def wrapped(*, call_of_this_request: Call, parts: Context, **arguments: Any) -> Answer:
        def do() -> Answer:
            answer: Answer = jsonable_encoder(endpoint(parts=parts, **arguments))
            return answer

        reissue = None if again is None else lambda earlier: again(parts, earlier)
        return once(parts.database, call_of_this_request, do, reissue)

    signature = inspect.signature(endpoint, eval_str=True)
    call = inspect.Parameter("call_of_this_request", inspect.Parameter.KEYWORD_ONLY, annotation=Calling)
    wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), call])  # type: ignore[attr-defined]
    wrapped.done_once = True  # type: ignore[attr-defined]
    return wrapped
