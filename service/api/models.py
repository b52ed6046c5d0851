"""Models: what jobs start from and what they made. A name may hold a slash, sent as it is or as %2F."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from allo_engine.pipeline import did_you_mean
from service.api import render
from service.api.context import Parts, Reader, Submitter
from service.api.download import content, served
from service.api.exports import FORMS, Dtype, recast
from service.api.once import Once
from service.api.pages import listed
from service.jobs.errors import NotFound
from service.jobs.registry import exports, models

router = APIRouter(prefix="/models", route_class=Once)


@router.get("")
def index(parts: Parts, key: Reader) -> dict[str, Any]:
    """The owner's models and everyone's."""
    return listed([render.model(row) for row in models.read_models(parts.database, key.owner)])


@router.head("/{name:path}/files/{path:path}", include_in_schema=False)
@router.get("/{name:path}/files/{path:path}")
def read_file(
    parts: Parts, key: Reader, name: str, path: str, request: Request, dtype: Dtype | None = None
) -> Response:
    """One file of a model. Takes Range and If-Range; ETag and Repr-Digest are its sha256. With `dtype` its weights come
    in that, under an ETag of their own."""
    file = models.file_of(models.read_model(parts.database, key.owner, name), path)
    if dtype is not None:
        part = recast(parts.store, file, dtype)
        return served(request, part.opened, part.size, path.rsplit("/", 1)[-1], part.tag, None)
    return content(request, parts.store, file["sha256"], file["bytes"], path.rsplit("/", 1)[-1])


@router.get("/{name:path}/files")
def files(parts: Parts, key: Reader, name: str) -> dict[str, Any]:
    """What to download to have the model: {path, bytes, sha256, url} of each file."""
    row = models.read_model(parts.database, key.owner, name)
    return listed([render.model_file(row, file) for file in row.files])


@router.get("/{name:path}")
def read(parts: Parts, key: Reader, name: str) -> dict[str, Any]:
    """One model, with what was made of it in other forms."""
    _, is_export, form = name.rpartition("/export/")
    if is_export:
        raise NotFound(
            f"No model comes as {form!r}.{did_you_mean(form, FORMS)} There are: {', '.join(FORMS)}.", "format"
        )
    row = models.read_model(parts.database, key.owner, name)
    return render.model(row, exports.of_model(parts.database, key.owner, name))


@router.delete("/{name:path}")
def delete(parts: Parts, key: Submitter, name: str) -> dict[str, Any]:
    """Forgets a model."""
    models.delete_model(parts.database, key.owner, name, admin="admin" in key.scopes)
    return {"id": name, "object": "model", "deleted": True}
