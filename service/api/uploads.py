"""Uploads in parts, for files that one request should not carry; a client that was cut off asks what has arrived."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field, StringConstraints

from service.api import files as api
from service.api.context import Context, Parts, Reader, Submitter, body_type, is_json
from service.api.forms import Form
from service.api.once import Calling, Once
from service.api.pages import listed
from service.api.schemas import PLAIN, Body, Id
from service.jobs.access.repetition import Call, once
from service.jobs.data import files, uploads
from service.jobs.data.uploads import NewUpload, UploadView
from service.jobs.tables import UploadPart

router = APIRouter(prefix="/uploads", route_class=Once)

_is_form = body_type("multipart/form-data", "Send the part as multipart/form-data, with the field data.")


class ExpiresAfter(Body):
    """When the file is to go."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=api.HOUR, le=30 * api.DAY)]


class CreateUpload(Body):
    """POST /v1/uploads."""

    bytes: Annotated[int, Field(ge=1, lt=2**63)]
    filename: Annotated[str, StringConstraints(min_length=1, max_length=1024), PLAIN]
    mime_type: Annotated[str, StringConstraints(min_length=1, max_length=255), PLAIN]
    purpose: Annotated[str, StringConstraints(max_length=64), PLAIN]
    expires_after: ExpiresAfter | None = None


class CompleteUpload(Body):
    """POST /v1/uploads/{upload_id}/complete."""

    part_ids: Annotated[list[Id], Field(min_length=1, max_length=uploads.MAX_PARTS)]
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{32}$")] | None = None


@router.post("", dependencies=[Depends(is_json)])
def create(parts: Parts, key: Submitter, body: CreateUpload) -> dict[str, Any]:
    """Begins an upload of `bytes` bytes in parts."""
    files.check_purpose(body.purpose)
    lifetime = body.expires_after.seconds if body.expires_after else None
    new = NewUpload(key.owner, body.bytes, api.name_of(body.filename), body.mime_type, lifetime)
    limits, settings = api.limits_of(parts.settings), parts.settings
    upload = uploads.begin(parts.database, new, limits, settings.upload_seconds, settings.max_owner_bytes)
    return _render(parts, UploadView(upload))


@router.get("/{upload_id}")
def read(parts: Parts, key: Reader, upload_id: str) -> dict[str, Any]:
    """One upload."""
    return _render(parts, uploads.read(parts.database, key.owner, upload_id))


@router.get("/{upload_id}/parts")
def read_parts(parts: Parts, key: Reader, upload_id: str) -> dict[str, Any]:
    """What has arrived, with the size and sha256 of each part, so that a client that was restarted goes on."""
    return listed([_render_part(part) for part in uploads.read_parts(parts.database, key.owner, upload_id)])


@router.post("/{upload_id}/parts", dependencies=[Depends(_is_form)])
async def add_part(request: Request, parts: Parts, key: Submitter, call: Calling, upload_id: str) -> dict[str, Any]:
    """Adds a part: multipart/form-data with the field `data`. Sent again because its answer was lost, it is the part
    that is there already: wherever that stands in the file, it is the same bytes."""
    work = partial(_add_part, parts, key.owner, call, upload_id)
    return await parts.intake.form(request, key.owner, "data", (), work)


def _add_part(parts: Context, owner: str, call: Call, upload_id: str, form: Form) -> dict[str, Any]:
    uploads.check_open(parts.database, owner, upload_id)
    blob = uploads.take_part(parts.store, form.content(), parts.settings.max_part_bytes)
    making = replace(call.of_content(blob.sha256, upload_id), subject=None)
    answer = once(
        parts.database, making, lambda: _render_part(uploads.add_part(parts.database, owner, upload_id, blob))
    )
    return dict(answer)


@router.post("/{upload_id}/complete", dependencies=[Depends(is_json)])
async def complete(parts: Parts, key: Submitter, upload_id: str, body: CompleteUpload) -> dict[str, Any]:
    """Makes the parts a file, in this order. One with bad lines is a 422 that names them, as for POST /v1/files."""
    return await parts.intake.run(key.owner, partial(_complete, parts, key.owner, upload_id, body))


def _complete(parts: Context, owner: str, upload_id: str, body: CompleteUpload) -> dict[str, Any]:
    asked = (owner, upload_id, body.part_ids, body.md5, api.limits_of(parts.settings))
    view = uploads.complete(parts.database, parts.store, *asked)
    if view.file is not None and view.file.status == "error":
        raise api.refused(api.render(view.file), view.problems)
    return _render(parts, view)


@router.post("/{upload_id}/cancel")
def cancel(parts: Parts, key: Submitter, upload_id: str) -> dict[str, Any]:
    """Ends an upload; its parts are forgotten."""
    return _render(parts, uploads.cancel(parts.database, key.owner, upload_id))


def _render(parts: Context, view: UploadView) -> dict[str, Any]:
    upload = view.upload
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "mime_type": upload.mime_type,
        "status": "expired" if uploads.is_expired(upload, parts.database.now()) else upload.status,
        "file": None if view.file is None else api.render(view.file),
    }


def _render_part(part: UploadPart) -> dict[str, Any]:
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": part.created_at,
        "upload_id": part.upload_id,
        "bytes": part.bytes,
        "sha256": part.sha256,
    }
