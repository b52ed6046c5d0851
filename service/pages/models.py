"""Models: what jobs begin with and what they left, in every form in which they are taken away."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from service.api import models as api
from service.api import render
from service.api.context import Admin, Context, Parts, Reader, Submitter
from service.api.download import content
from service.api.exports import Dtype, read_delta, read_safetensors
from service.api.guard import PAGES
from service.api.reading import reading
from service.exporter import ensure
from service.jobs.errors import Busy, InvalidRequest, NotFound
from service.jobs.registry import exports, models
from service.jobs.registry.exports import UNFINISHED
from service.jobs.tables import ApiKey
from service.pages.failures import wants_fragment
from service.pages.rendering import page

router = APIRouter(prefix="/models")

HOME = f"{PAGES}/models"

AT_ONCE = 50

Text = Annotated[str, Query(max_length=255)]
Word = Annotated[str, Form(max_length=200)]

_adding = threading.Lock()


@router.get("")
@reading
def index(request: Request, parts: Parts, key: Reader, text: Text = "", after: Text = "") -> Response:
    """Everyone's models, and those that the owner's jobs made, the newest first."""
    return _listed(request, parts, key, text=text.strip(), after=after)


@router.post("")
def add(request: Request, parts: Parts, key: Admin, folder: Word = "", name: Word = "") -> Response:
    """Makes a folder of the operator's a model, everyone's. It is copied and probed: that takes its time, and one is
    taken in at a time."""
    if not _adding.acquire(blocking=False):
        raise Busy("Another model is being taken in: wait for it.")
    try:
        if folder not in _folders(parts):
            raise InvalidRequest("There is no such folder among those that the operator offers.", "folder")
        path = Path(parts.settings.models_dir) / folder
        models.register_model(parts.database, parts.store, name.strip() or folder, path)
    except InvalidRequest as error:
        field = "name" if error.param == "name" else "folder"
        return _listed(request, parts, key, 422, {field: error.message}, {"folder": folder, "name": name})
    finally:
        _adding.release()
    return RedirectResponse(_address(name.strip() or folder), 303)


@router.get("/{name:path}/files/{path:path}")
def download(parts: Parts, key: Reader, name: str, path: str, request: Request, dtype: Dtype | None = None) -> Response:
    """One file of a model."""
    return api.read_file(parts, key, name, path, request, dtype)


@router.get("/{name:path}/export/safetensors")
def download_all(parts: Parts, key: Reader, name: str, request: Request, dtype: Dtype | None = None) -> Response:
    """The whole model as a tar."""
    return read_safetensors(parts, key, name, request, dtype)


@router.get("/{name:path}/export/delta")
def download_delta(parts: Parts, key: Reader, name: str, request: Request) -> Response:
    """What training changed."""
    return read_delta(parts, key, name, request)


@router.post("/{name:path}/export")
def export(
    parts: Parts,
    key: Reader,
    name: str,
    format: Annotated[Literal["gguf-f16", "gguf-q8_0", "peft"], Form()],
    rank: Annotated[int, Form(ge=1, le=1024)] = 16,
) -> Response:
    """Asks for a form that is made once."""
    kind, _, type_ = format.partition("-")
    options: dict[str, Any] = {"type": type_} if kind == "gguf" else {"rank": rank}
    if exports.ask(parts.database, key.owner, name, kind, options).status in UNFINISHED:
        ensure(parts.settings)
    return RedirectResponse(f"{_address(name)}#forms", 303)


@router.get("/{name:path}/made/{export_id}/{path}")
def download_made(parts: Parts, key: Reader, name: str, export_id: str, path: str, request: Request) -> Response:
    """One file of a form that was made."""
    for row in exports.of_model(parts.database, key.owner, name):
        for file in row.files if row.id == export_id else ():
            if file["path"] == path:
                return content(request, parts.store, file["sha256"], file["bytes"], path)
    raise NotFound("There is no such file of this model.")


@router.post("/{name:path}/delete")
def delete(parts: Parts, key: Submitter, name: str) -> Response:
    """Forgets a model."""
    models.delete_model(parts.database, key.owner, name, admin="admin" in key.scopes)
    return RedirectResponse(HOME, 303)


@router.get("/{name:path}")
@reading
def read(request: Request, parts: Parts, key: Reader, name: str) -> Response:
    """One model; for htmx its made forms alone, which it asks for until they are made."""
    row = models.read_model(parts.database, key.owner, name)
    made = exports.of_model(parts.database, key.owner, name)
    return page(
        request,
        "model_forms.html" if wants_fragment(request) else "model.html",
        model=render.model(row),
        files=row.files,
        made=made,
        waiting=any(one.status in UNFINISHED for one in made),
        delta=_has_delta(parts, key, name),
        mine=row.owner == key.owner,
    )


def _has_delta(parts: Context, key: ApiKey, name: str) -> bool:
    try:
        return bool(exports.delta_of(parts.database, key.owner, name))
    except InvalidRequest:
        return False


def _address(name: str) -> str:
    return f"{HOME}/{quote(name)}"


def _folders(parts: Context) -> list[str]:
    """What the operator offers: the folders of one folder that hold a model's configuration."""
    offered = parts.settings.models_dir
    if not offered or not Path(offered).is_dir():
        return []
    return sorted(path.name for path in Path(offered).iterdir() if (path / "config.json").is_file())


def _listed(
    request: Request,
    parts: Context,
    key: ApiKey,
    status: int = 200,
    wrong: dict[str, str] | None = None,
    typed: dict[str, str] | None = None,
    text: str = "",
    after: str = "",
) -> Response:
    made, more = models.read_made(parts.database, key.owner, text, after or None, AT_ONCE)
    registered = () if after else models.read_registered(parts.database, key.owner, text, 2 * AT_ONCE)
    admin = "admin" in key.scopes
    return page(
        request,
        "models.html",
        status,
        models=[render.model(row) for row in (*registered, *made)],
        text=text,
        older=made[-1].id if more else None,
        folders=_folders(parts) if admin else [],
        wrong=wrong or {},
        typed=typed or {"folder": "", "name": ""},
    )
