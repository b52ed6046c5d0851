"""The OpenAPI document: what FastAPI knows of the routes, and what it cannot know: who may call them, what each
answers, and with which errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from allo_engine.config import CONFIGS
from service.api.bodies import REF, complete, describe_bodies
from service.api.refusals import CODES, codes_of
from service.api.shapes import ANSWERS, OTHER_KINDS, all_shapes

VERSION = "1"

OPEN = ("/healthz", "/readyz", "/docs")
"""Beginnings of the paths that want no key."""

TAGS: Mapping[str, str] = {
    "Files": "What jobs train on, and what they report.",
    "Uploads": "Files that come in parts, and go on where they stopped.",
    "Fine-tuning": "Jobs: submitted, watched, paused, cancelled, run again.",
    "Models": "What jobs start from and what they made, file by file.",
    "Chat": "Models that answer.",
    "Artifacts": "The bytes of what stages wrote.",
    "Webhooks": "Endpoints that are told when a job ends.",
    "Keys": "API keys and the audit log; for operators.",
    "Hub": "Models as the Hugging Face Hub's clients read them.",
    "Operations": "Health, metrics and workers; for operators.",
}

_TAG_OF = {
    "files": "Files",
    "insight": "Files",
    "uploads": "Uploads",
    "jobs": "Fine-tuning",
    "estimate": "Fine-tuning",
    "sweeps": "Fine-tuning",
    "events": "Fine-tuning",
    "exports": "Models",
    "models": "Models",
    "chat": "Chat",
    "artifacts": "Artifacts",
    "webhooks": "Webhooks",
    "keys": "Keys",
    "hub": "Hub",
}
"""By the module of the endpoint; all others are for operators."""

_ERRORS: Mapping[int, str] = {
    400: "The request is no HTTP, or its body cannot be read.",
    401: "There is no key, or it is unknown, revoked or expired.",
    403: "The key has not the scope.",
    404: "There is no such object of this owner.",
    408: "The rest of the request did not come in time.",
    409: "The object's state does not allow it; `x-should-retry` says whether to ask again.",
    413: "The body is too large.",
    415: "The body's type or encoding is not taken.",
    422: "A field's value cannot be, or does not fit: `param` names it.",
    429: "A limit of the owner is reached; `retry-after` says how long.",
    500: "An error of the service. The message has an id that its log has, too.",
    503: "A part does not answer; nothing was changed. `retry-after` says how long to wait.",
    507: "The service's disk, or the owner's share of it, is full.",
}

_ALWAYS = (400, 401, 403, 408, 415, 422, 429, 500, 503)
"""What any request with a key may meet: limits, and parts that are away."""


def document(app: FastAPI) -> dict[str, Any]:
    """The document of the app as it stands."""
    found = get_openapi(
        title="ALLO",
        version=VERSION,
        description="Aligns language models: upload data, submit a job, watch it, download the aligned model. Files, "
        "uploads, jobs, models and webhooks are as OpenAI's clients speak them, downloads as the Hugging Face Hub's.",
        routes=app.routes,
        servers=[{"url": "/", "description": "This service"}],
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas.update(_schemas())
    found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": _KEYS}}
    describe_bodies(found)
    for path, verb, operation in _operations(found):
        _complete(path, verb, operation)
    return found


_KEYS = "An API key. Scopes: read, submit, admin, metrics; admin may do everything."


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def _schemas() -> dict[str, Any]:
    """Every shape, and the settings of every stage, as components."""
    own: dict[str, TypeAdapter[Any]] = {name: TypeAdapter(shape) for name, shape in all_shapes()}
    settings = {f"stage {name}": TypeAdapter(config) for name, config in CONFIGS.items()}
    wanted = [(name, "validation", adapter) for name, adapter in (own | settings).items()]
    _, found = TypeAdapter.json_schemas(wanted, ref_template=REF)  # type: ignore[arg-type]
    definitions: dict[str, Any] = found["$defs"]
    return definitions


def _complete(path: str, verb: str, operation: dict[str, Any]) -> None:
    """Everything of one operation that FastAPI could not know."""
    name = operation["operationId"]
    module = name.partition(".")[0]
    operation["tags"] = [_TAG_OF.get(module, "Operations")]
    summary, _, rest = operation.get("description", "").partition(".")
    operation["summary"], operation["description"] = summary.replace("\n", " "), rest.strip()
    open_to_all = path.startswith(OPEN)
    operation["security"] = [] if open_to_all else [{"key": []}]
    for asked in operation.get("parameters", ()):
        complete(asked["schema"])
    answers = operation["responses"]
    answers.pop("422", None)
    answer = None if open_to_all else ANSWERS[name]
    if not open_to_all:
        answers["200"] = {"description": "What was asked for.", "content": _content(answer)}
        answers["200"]["content"] |= OTHER_KINDS.get(name, {})
    if _is_download(name):
        answers |= _of_content(answers["200"])
    if name == "insight.read":
        answers["202"] = {"description": "It is being worked out: ask again.", "content": _content(ANSWERS[name])}
    if name == "events.index":
        answers["204"] = {"description": "The events from `Last-Event-ID` on have all been told, and the job is over."}
    for status in () if open_to_all else _statuses(path, verb, operation):
        answers.setdefault(str(status), _error(status))
    if not open_to_all:
        answers["422"] = _refusal(codes_of(operation))


def _statuses(path: str, verb: str, operation: Mapping[str, Any]) -> list[int]:
    wanted = [*_ALWAYS]
    if "{" in path or path.endswith("/compare"):  # whose query names jobs
        wanted.append(404)
    if any(one["name"] == "after" for one in operation.get("parameters", ())):
        wanted.append(404)
    if operation["operationId"] == "jobs.compare":
        wanted.append(409)  # where a job has no report yet
    if verb in ("post", "delete"):
        wanted += [404, 409, 507]
    if verb == "post":
        wanted.append(413)
    if _is_download(operation["operationId"]):
        wanted += [412, 416]
    return sorted(set(wanted))


def _refusal(codes: Sequence[str]) -> dict[str, Any]:
    """The 422 of an operation: an error with one of these codes."""
    found = _error(422)
    told = "; ".join(f"`{code}`: {CODES[code]}" for code in codes)
    error = {"type": "object", "properties": {"code": {"enum": list(codes)}}}
    coded = {"type": "object", "properties": {"error": error}}
    found["description"] = f"{_ERRORS[422]} By its code: {told}."
    found["content"] = {"application/json": {"schema": {"allOf": [{"$ref": REF.format(model="Error")}, coded]}}}
    return found


def _is_download(name: str) -> bool:
    return ANSWERS.get(name) is bytes or name == "events.metrics"


def _content(answer: Any) -> dict[str, Any]:
    if answer is bytes:
        return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if answer is str:
        return {"text/plain": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": _schema(answer)}}


def _schema(answer: Any) -> dict[str, Any]:
    if answer == "array of HubEntry":
        return {"type": "array", "items": {"$ref": REF.format(model="HubEntry")}}
    if getattr(answer, "__origin__", None) is list:
        entry = {"$ref": REF.format(model=answer.__args__[0].__name__)}
        ends = {name: {"type": ["string", "null"]} for name in ("first_id", "last_id")}
        return {
            "type": "object",
            "required": ["object", "data", "has_more"],
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": entry},
                "has_more": {"type": "boolean"},
                **ends,
            },
        }
    if isinstance(answer, UnionType):
        return {"anyOf": [_schema(kind) for kind in answer.__args__]}
    return {"$ref": REF.format(model=answer.__name__)}


def _of_content(whole: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "206": {**whole, "description": "The part that `Range` asks for."},
        "304": {"description": "`If-None-Match` names what is there."},
    }


def _error(status: int) -> dict[str, Any]:
    said = {412: "`If-Match` names another content.", 416: "The content does not have the range."} | dict(_ERRORS)
    return {
        "description": said[status],
        "headers": {"x-request-id": {"schema": {"type": "string"}, "description": "For questions to the operator."}},
        "content": {"application/json": {"schema": {"$ref": REF.format(model="Error")}}},
    }
