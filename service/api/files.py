"""Files: what jobs train on, and the reports that they leave."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api.context import Context, Parts, Reader, Submitter, body_type
from service.api.download import content
from service.api.forms import Form
from service.api.once import Calling, Once
from service.api.pages import LongPaging, listed
from service.datasets.validation import LineProblem
from service.jobs.access.repetition import Call, once
from service.jobs.clean import clean_text
from service.jobs.data import files
from service.jobs.data.quota import exceeded, room
from service.jobs.errors import InvalidRequest, TooLarge
from service.jobs.tables import File
from service.settings import Settings

router = APIRouter(prefix="/files", route_class=Once)

ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
HOUR, DAY = 3600, 86400

Sha256 = Annotated[str, Query(pattern="^[0-9a-f]{64}$")]

is_form = body_type("multipart/form-data", "Send the file as multipart/form-data, with the fields purpose and file.")


@router.post("", dependencies=[Depends(is_form)])
async def create(request: Request, parts: Parts, key: Submitter, call: Calling) -> dict[str, Any]:
    """Stores and checks a training file. One with bad lines is a 422 that names them, and keeps the full report."""
    names = ("purpose", ANCHOR, SECONDS)
    return await parts.intake.form(request, key.owner, "file", names, partial(_create, parts, key.owner, call))


def _create(parts: Context, owner: str, call: Call, form: Form) -> dict[str, Any]:
    form.begin()
    if "purpose" in form.fields:  # told before the file comes, a mistake costs no transfer
        files.check_purpose(form.fields["purpose"])
    content = taken(parts, owner, form)
    new = files.NewFile(owner, name_of(form.filename), _lifetime(form.fields))
    making, quota = call.of_content(content.blob.sha256, new.filename), parts.settings.max_owner_bytes
    answer = dict(once(parts.database, making, lambda: render(files.add_file(parts.database, new, content, quota))))
    if content.report:
        raise refused(answer, content.summary.shown)
    return answer


def taken(parts: Context, owner: str, form: Form) -> files.Content:
    """The form's file: stored and checked as it comes, as far as the owner has room for it."""
    limits, quota = limits_of(parts.settings), parts.settings.max_owner_bytes
    left = room(parts.database, owner, quota)
    if left is None or left >= limits.bytes:
        return files.take_in(parts.store, _whole(form), limits)
    try:
        return files.take_in(parts.store, _whole(form), replace(limits, bytes=left))
    except TooLarge:
        raise exceeded(quota, quota + 1) from None


def _whole(form: Form) -> Iterator[bytes]:
    """The file; then fields that are wrong or missing are told, before it is kept."""
    yield from form.content()
    if "purpose" not in form.fields:
        raise InvalidRequest("purpose: is required.", "purpose")
    files.check_purpose(form.fields["purpose"])
    _lifetime(form.fields)


@router.get("")
def index(
    parts: Parts, key: Reader, page: LongPaging, purpose: str | None = None, sha256: Sha256 | None = None
) -> dict[str, Any]:
    """The owner's files; with `sha256` those of this content, which then need not be sent again."""
    found, more = files.read_files(parts.database, key.owner, page, purpose, sha256)
    return listed([render(file) for file in found], more)


@router.get("/{file_id}")
def read(parts: Parts, key: Reader, file_id: str) -> dict[str, Any]:
    """One file, without its content."""
    return render(files.read_file(parts.database, key.owner, file_id))


@router.head("/{file_id}/content", include_in_schema=False)
@router.get("/{file_id}/content")
def read_content(parts: Parts, key: Reader, file_id: str, request: Request) -> Response:
    """The bytes as they were uploaded. Takes Range."""
    file = files.read_file(parts.database, key.owner, file_id)
    return content(request, parts.store, file.sha256, file.bytes, file.filename, once=True)


@router.head("/{file_id}/report", include_in_schema=False)
@router.get("/{file_id}/report")
def read_report(parts: Parts, key: Reader, file_id: str, request: Request) -> Response:
    """Every problem of a refused file, a JSON object a line: {line, field, wrong, right}."""
    sha256 = files.report_of(files.read_file(parts.database, key.owner, file_id))
    return content(request, parts.store, sha256, parts.store.size(sha256), f"{file_id}-report.jsonl")


@router.delete("/{file_id}")
def delete(parts: Parts, key: Submitter, file_id: str) -> dict[str, Any]:
    """Forgets a file; jobs that began with it go on. The content goes with its last holder."""
    files.delete_file(parts.database, key.owner, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def limits_of(settings: Settings) -> files.FileLimits:
    """How large a training file may be."""
    return files.FileLimits(settings.max_file_bytes, settings.max_line_bytes)


def _lifetime(fields: Mapping[str, str]) -> int | None:
    """After how many seconds the file is to go. Raises InvalidRequest."""
    anchor, seconds = fields.get(ANCHOR), fields.get(SECONDS)
    if anchor is None and seconds is None:
        return None
    if anchor is None or seconds is None:
        raise InvalidRequest("expires_after takes both anchor and seconds.", "expires_after")
    if anchor != "created_at":
        raise InvalidRequest(f"{ANCHOR}: must be 'created_at'.", ANCHOR)
    if not re.fullmatch("[0-9]{1,7}", seconds) or not HOUR <= int(seconds) <= 30 * DAY:
        raise InvalidRequest(f"{SECONDS}: must be a number from {HOUR} to {30 * DAY}.", SECONDS)
    return int(seconds)


def name_of(filename: str | None) -> str:
    """A file's name without folders or control characters: it is shown and sent back, and never a path here."""
    last = clean_text(filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable()) or "upload.jsonl"


def render(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.status_details,
        "format": file.format,
        "form": file.form,
        "container": file.container,
        "rows": file.rows,
        "duplicates": file.duplicates,
        "sha256": file.sha256,
    }


def refused(file: Mapping[str, Any], problems: tuple[LineProblem, ...]) -> InvalidRequest:
    """What is wrong with a file, as it was rendered."""
    report = f"/v1/files/{file['id']}/report"
    message = f"The file cannot be trained on. {file['status_details']} All of it: GET {report}"
    details = {"file_id": file["id"], "report": report, "lines": [asdict(problem) for problem in problems]}
    return InvalidRequest(message, "file", "invalid_training_file", details)
