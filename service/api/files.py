"""Files: what jobs train on, and the reports that they leave."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Request, Response, UploadFile
from starlette.exceptions import HTTPException

from service.api.context import Parts, Reader, Submitter, body_type
from service.api.download import content
from service.api.once import Once
from service.api.pages import LongPaging, listed
from service.datasets.validation import LineProblem
from service.jobs import files
from service.jobs.clean import clean_text
from service.jobs.errors import InvalidRequest
from service.jobs.tables import File

router = APIRouter(prefix="/files", route_class=Once)


_is_form = body_type("multipart/form-data", "Send the file as multipart/form-data, with the fields purpose and file.")


@router.post("", dependencies=[Depends(_is_form)])
def create(
    parts: Parts,
    key: Submitter,
    file: UploadFile,
    purpose: Annotated[str, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=2_592_000)] = None,
) -> dict[str, Any]:
    """Stores and checks a training file. One with bad lines is a 422 that names them, and keeps the full report."""
    files.check_purpose(purpose)
    if (file.size or 0) > parts.settings.max_file_bytes:
        raise HTTPException(413)
    if (anchor is None) != (seconds is None):
        raise InvalidRequest("expires_after takes both anchor and seconds.", "expires_after")
    upload = files.add_file(
        parts.database, parts.store, key.owner, _name(file), file.file, parts.settings.max_line_bytes, seconds
    )
    if upload.problems:
        raise _refused(upload.file, upload.problems)
    return _render(upload.file)


@router.get("")
def index(parts: Parts, key: Reader, page: LongPaging, purpose: str | None = None) -> dict[str, Any]:
    """The owner's files."""
    found, more = files.read_files(parts.database, key.owner, page, purpose)
    return listed([_render(file) for file in found], more)


@router.get("/{file_id}")
def read(parts: Parts, key: Reader, file_id: str) -> dict[str, Any]:
    """One file, without its content."""
    return _render(files.read_file(parts.database, key.owner, file_id))


@router.head("/{file_id}/content", include_in_schema=False)
@router.get("/{file_id}/content")
def read_content(parts: Parts, key: Reader, file_id: str, request: Request) -> Response:
    """The bytes as they were uploaded. Takes Range."""
    file = files.read_file(parts.database, key.owner, file_id)
    return content(request, parts.store, file.sha256, file.bytes, file.filename)


@router.head("/{file_id}/report", include_in_schema=False)
@router.get("/{file_id}/report")
def read_report(parts: Parts, key: Reader, file_id: str, request: Request) -> Response:
    """Every problem of a refused file, a JSON object a line: {line, field, wrong, right}."""
    sha256 = files.report_of(files.read_file(parts.database, key.owner, file_id))
    return content(request, parts.store, sha256, parts.store.size(sha256), f"{file_id}-report.jsonl")


@router.delete("/{file_id}")
def delete(parts: Parts, key: Submitter, file_id: str) -> dict[str, Any]:
    """Forgets a file; jobs that began with it go on."""
    files.delete_file(parts.database, key.owner, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def _name(file: UploadFile) -> str:
    """The file's name without folders or control characters: it is shown and sent back, and never a path here."""
    last = clean_text(file.filename or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(character for character in last if character.isprintable()) or "upload.jsonl"


def _render(file: File) -> dict[str, Any]:
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


def _refused(file: File, problems: tuple[LineProblem, ...]) -> InvalidRequest:
    report = f"/v1/files/{file.id}/report"
    message = f"The file cannot be trained on. {file.status_details} All of it: GET {report}"
    details = {"file_id": file.id, "report": report, "lines": [asdict(problem) for problem in problems]}
    return InvalidRequest(message, "file", "invalid_training_file", details)
