"""The one table from what went wrong to an HTTP answer, in the shape that OpenAI's clients read."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from allo_engine.checks import path_of
from allo_engine.full import disk_is_full
from allo_engine.pipeline import PlanError
from service.api.scope import request_id
from service.db import is_full
from service.jobs.clean import clean_json, clean_text
from service.jobs.errors import (
    Busy,
    Conflict,
    DomainError,
    Forbidden,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    TooLarge,
    TooLong,
    TooMany,
    Unavailable,
)
from service.jobs.registry.hub import Absent
from service.storage.store import DiskFull, StoreAway, StoreError

log = logging.getLogger(__name__)

STATUS: Mapping[type[Exception], int] = {
    NotFound: 404,
    Forbidden: 403,
    InvalidRequest: 422,
    PlanError: 422,
    Conflict: 409,
    TooMany: 429,
    TooLarge: 413,
    TooLong: 400,
    Unavailable: 503,
    StoreError: 500,
    StoreAway: 503,
    DiskFull: 507,
    OperationalError: 503,
    PoolTimeout: 503,
}

HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"www-authenticate": "Bearer"},
    409: {"x-should-retry": "false"},  # the same again would meet the same state
    429: {"retry-after": "30"},
    503: {"retry-after": "2"},
    507: {"x-should-retry": "false"},  # a disk empties by hand
}

OWN_HEADERS: Mapping[type[Exception], Mapping[str, str]] = {
    Busy: {"x-should-retry": "true", "retry-after": "1"},  # what stands in the way ends by itself
    QuotaExceeded: {"x-should-retry": "false"},
}

TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

MESSAGES: Mapping[int, str] = {
    400: "The body is no JSON that can be read: it is nested too deeply, or has a number of thousands of digits.",
    404: "There is no such route.",
    405: "The route exists, but not with this method.",
    413: "The body is larger than this service takes.",
    503: "The database does not answer at the moment: nothing was changed. Try again soon.",
    507: "The service's disk is full; nothing was stored. Delete files or models, or have its operator make room: "
    "`allo doctor` shows what is held, and by whom.",
}

FAILS = (
    "The service's disk could not be read or written: nothing was changed. Try again, and tell the service's operator."
)

AWAY = "The artifact store does not answer at the moment. Try again soon."


def answer(
    request: Request,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as the client expects it."""
    sent = {**HEADERS.get(status, {}), **(headers or {}), "x-request-id": request_id(request.scope)}
    body = envelope(status, message, param, code, details)
    return Response(body, status, headers=sent, media_type="application/json")


def envelope(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> bytes:
    """The body of an error. It never repeats more than a little of what the client sent."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    about = None if param is None else clean_text(param)[:200]
    error = {"message": clean_text(message)[:4000], "type": kind, "param": about, "code": code}
    return json.dumps({"error": clean_json({**(details or {}), **error})}, ensure_ascii=False).encode()


def envelope_of(error: DomainError) -> bytes:
    """The same of an error that comes when the answer has begun, in a stream."""
    return envelope(status_of(error), error.message, error.param, error.code, error.details)


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error of the app, the framework's own too, an answer of ours."""
    for meant in (DomainError, PlanError):
        app.add_exception_handler(meant, _of_the_domain)
    for failed in (StoreError, StoreAway, DiskFull, OperationalError, PoolTimeout):
        app.add_exception_handler(failed, _of_a_part)
    app.add_exception_handler(RequestValidationError, _of_the_request)
    app.add_exception_handler(HTTPException, _of_the_framework)
    app.add_exception_handler(OSError, _of_the_machine)


def _of_the_domain(request: Request, error: Exception) -> Response:
    assert isinstance(error, DomainError | PlanError)
    status = status_of(error)
    if isinstance(error, PlanError):
        return answer(request, status, error.message, error.param, error.code)
    own = next((headers for kind, headers in OWN_HEADERS.items() if isinstance(error, kind)), None)
    headers = _for_the_hub(error) if isinstance(error, Absent) else own
    return answer(request, status, error.message, error.param, error.code, error.details, headers)


def status_of(error: Exception) -> int:
    """Of one of the kinds that STATUS has. A full disk is one wherever it was met: in the store or in the database."""
    if (isinstance(error, DBAPIError) and is_full(error)) or disk_is_full(error):
        return 507
    return next(status for kind, status in STATUS.items() if isinstance(error, kind))


def _for_the_hub(error: Absent) -> dict[str, str]:
    """By these the Hub's client tells what is absent; it shows the message."""
    plain = clean_text(error.message)[:500].encode("ascii", "replace").decode()
    printable = "".join(letter if letter.isprintable() else "?" for letter in plain)
    return {"x-error-code": error.code, "x-error-message": printable}


def _of_a_part(request: Request, error: Exception) -> Response:
    """The log has the reason; of a database it is what that itself said, without the statement and its values."""
    log.error("part_failed error=%r", getattr(error, "orig", None) or error)
    if isinstance(error, StoreError):
        message = f"The stored content {error.sha256} cannot be read. The error's id is {request_id(request.scope)}."
        return answer(request, 500, message, code="content_unavailable")
    if isinstance(error, StoreAway):
        return answer(request, 503, AWAY, code="store_unavailable")
    if status_of(error) == 507:
        return answer(request, 507, MESSAGES[507], code="disk_full")
    return answer(request, 503, MESSAGES[503], code="database_unavailable")


def _of_the_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if any(problem["loc"] == ("body",) for problem in error.errors()) and not _says_json(request):
        return answer(request, 415, "Send the body as application/json.")
    found = problems(error.errors())
    message = " ".join(f"{param}: {reason}." if param else f"{reason}." for param, reason in found[:10])
    return answer(request, 422, message, found[0][0] or None, "invalid_value")


def problems(errors: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Of what pydantic found: the path of each field as its user writes it, and what is wrong with it."""
    return list(dict.fromkeys((_param(problem["loc"]), _reason(problem)) for problem in errors))


def _says_json(request: Request) -> bool:
    """Of a request without a body too, as that is none of another kind."""
    kind = request.headers.get("content-type", "application/json")
    return kind.partition(";")[0].strip().lower() == "application/json"


def _of_the_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = MESSAGES.get(error.status_code, str(error.detail))
    headers = {"allow": ", ".join(_methods(request))} if error.status_code == 405 else error.headers
    return answer(request, error.status_code, message, code=_code(error.status_code), headers=headers)


def _methods(request: Request) -> list[str]:
    """The methods that the path has, whichever of its routes they belong to."""
    asked = {"type": "http", "path": request.scope["path"], "root_path": request.scope.get("root_path", "")}
    routes = request.app.routes
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**asked, "method": method})[0] is Match.FULL for route in routes)
    ]


def _of_the_machine(request: Request, error: Exception) -> Response:
    """A full disk, or one that fails; whatever else the machine did is unforeseen."""
    if disk_is_full(error):
        return answer(request, 507, MESSAGES[507], code="disk_full")
    if not disk_fails(error):
        raise error
    log.error("disk_failed error=%r", error)
    return answer(request, 503, FAILS, code="disk_failed")


def disk_fails(error: Exception) -> bool:
    """Whether the disk could not be read or written: nothing that hangs on it was acknowledged."""
    return isinstance(error, OSError) and error.errno == errno.EIO


def unforeseen(request: Request) -> Response:
    """The error is in the log; the user learns nothing of our insides, but has an id to report."""
    name = request_id(request.scope)
    return answer(request, 500, f"An error of this service, not of the request. Its id is {name}.", code="internal")


def _param(location: Sequence[Any]) -> str:
    """The path of a field as its user writes it."""
    told = path_of(location)
    parts = [str(part) for part in told if not isinstance(part, int) or len(told) > 2]
    return ".".join(parts[1:] if parts and parts[0] in ("body", "query", "path", "header") else parts)


def _reason(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such field"
    if problem["type"] == "missing":
        return "is required" if len(problem["loc"]) > 1 else "The request has no body"
    if problem["type"] == "json_invalid":
        return f"The body is not JSON: {problem['ctx']['error']}"
    text = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return text[:1].lower() + text[1:].rstrip(".")


def _code(status: int) -> str | None:
    return {400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}.get(status)
