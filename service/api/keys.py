"""Keys and the audit log: who may use the service, and who did. For admins alone."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import Field, Strict

from service.api.context import Admin, Context, Parts, is_json
from service.api.once import Once, reissues
from service.api.pages import Paging, listed
from service.api.schemas import Body, Id
from service.jobs.access import audit, keys
from service.jobs.access.keys import NewKey, Scope
from service.jobs.access.repetition import Answer
from service.jobs.tables import ApiKey, AuditEntry

router = APIRouter(prefix="/keys", route_class=Once)
log = APIRouter(prefix="/audit")

Owner = Annotated[str | None, Query(max_length=64)]


class CreateKey(Body):
    """POST /v1/keys. `expires_at` is in Unix seconds; a key without one does not expire."""

    owner: Annotated[Id, Field(json_schema_extra={"pattern": f"^{keys.OWNER.pattern}$"})]
    scopes: Annotated[tuple[Scope, ...], Strict(False), Field(min_length=1, max_length=len(keys.SCOPES))] = (
        "read",
        "submit",
    )
    expires_at: Annotated[int, Field(ge=0, lt=2**63)] | None = None


def _again(parts: Context, earlier: Answer) -> Answer:
    """A key whose secret was lost on its way gets another one."""
    return _with_secret(parts, keys.rotate_key(parts.database, earlier["id"]))


@router.post("", dependencies=[Depends(is_json)])
@reissues(_again)
def create(parts: Parts, _key: Admin, body: CreateKey) -> dict[str, Any]:
    """Makes a key of an owner. Its secret is in this answer and nowhere else."""
    return _with_secret(parts, keys.create_key(parts.database, body.owner, body.scopes, body.expires_at))


@router.get("")
def index(parts: Parts, _key: Admin, page: Paging, owner: Owner = None) -> dict[str, Any]:
    """Every key, newest first, without its secret."""
    found, more = keys.read_keys(parts.database, page, owner)
    return listed([_render(row, parts.database.now()) for row in found], more)


@router.get("/{key_id}")
def read(parts: Parts, _key: Admin, key_id: str) -> dict[str, Any]:
    """One key, without its secret."""
    return _render(keys.read_key(parts.database, key_id), parts.database.now())


@router.delete("/{key_id}")
def revoke(parts: Parts, _key: Admin, key_id: str) -> dict[str, Any]:
    """Ends a key: in this process at once, in every other within two seconds."""
    keys.revoke_key(parts.database, key_id)
    parts.keys.forget(key_id)
    return {"id": key_id, "object": "api_key", "deleted": True}


@router.post("/{key_id}/rotate")
@reissues(_again)
def rotate(parts: Parts, _key: Admin, key_id: str) -> dict[str, Any]:
    """Gives the key another secret, shown in this answer alone; the old one ends as that of a revoked key does."""
    return _with_secret(parts, keys.rotate_key(parts.database, key_id))


@log.get("")
def entries(parts: Parts, _key: Admin, page: Paging, owner: Owner = None, object: Owner = None) -> dict[str, Any]:
    """Who did what, newest first; `object` is the id of what it was done to."""
    found, more = audit.read_page(parts.database, page, owner, object)
    return listed([_entry(row) for row in found], more)


def _with_secret(parts: Context, made: NewKey) -> dict[str, Any]:
    parts.keys.forget(made.id)
    return _render(keys.read_key(parts.database, made.id), parts.database.now()) | {"secret": made.secret}


def _render(row: ApiKey, now: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "api_key",
        "owner": row.owner,
        "scopes": row.scopes,
        "begins_with": row.prefix,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "status": keys.status(row, now),
    }


def _entry(row: AuditEntry) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "audit_entry",
        "created_at": row.created_at,
        "owner": row.owner,
        "key_id": row.key_id,
        "address": row.address,
        "verb": row.verb,
        "object_id": row.object_id,
        "status": row.status,
        "request_id": row.request_id,
    }
