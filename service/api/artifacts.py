"""The bytes of what stages wrote."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api.context import Parts, Reader
from service.api.download import content
from service.jobs import service

router = APIRouter(prefix="/artifacts")


@router.head("/{artifact_id}/content", include_in_schema=False)
@router.get("/{artifact_id}/content")
def read_content(parts: Parts, key: Reader, artifact_id: str, request: Request) -> Response:
    """One file. Takes Range and If-Range; ETag and Repr-Digest are its sha256."""
    artifact = service.read_artifact(parts.database, key.owner, artifact_id)
    name = artifact.path.rsplit("/", 1)[-1]
    return content(request, parts.store, artifact.sha256, artifact.bytes, name)
