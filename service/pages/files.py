"""Data: the files that jobs train on; uploaded, looked into by a model's eyes, and deleted."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from markupsafe import Markup

from service.api import files as api
from service.api.context import Context, Parts, Reader, Submitter
from service.api.forms import Form
from service.api.guard import PAGES
from service.api.reading import reading
from service.jobs.data import files, insights
from service.jobs.errors import DomainError
from service.jobs.registry import models
from service.jobs.repository import Page
from service.jobs.tables import File
from service.pages.charts import histogram
from service.pages.parts import Start, leads_to, part
from service.pages.rendering import page

router = APIRouter(prefix="/files")

AT_ONCE, PROBLEMS = 50, 50
"""Files of a page of the list, and bad lines of a page of a file's."""

FURTHEST = 5000
"""Bad lines that are paged to; the report has all."""

Id = Annotated[str | None, Query(max_length=64)]
Name = Annotated[str | None, Query(max_length=255)]


@router.get("")
@reading
def index(request: Request, parts: Parts, key: Reader, after: Id = None) -> Response:
    """The owner's files, newest first."""
    found, more = files.read_files(parts.database, key.owner, Page(AT_ONCE, after), None)
    return page(request, "files.html", files=found, more=more)


@router.post("", dependencies=[Depends(api.is_form)])
async def create(request: Request, parts: Parts, key: Submitter) -> Response:
    """Stores and checks a file as it comes; its page shows what is wrong with a bad one."""
    names = ("purpose", "form_token")
    file = await parts.intake.form(request, key.owner, "file", names, partial(_stored, parts, key.owner))
    return leads_to(request, f"{PAGES}/files/{file.id}", 201)


def _stored(parts: Context, owner: str, form: Form) -> File:
    form.begin()
    content = api.taken(parts, owner, form)
    new = files.NewFile(owner, api.name_of(form.filename))
    return files.add_file(parts.database, new, content, parts.settings.max_owner_bytes)


@router.get("/{file_id}")
@reading
def show(
    request: Request, parts: Parts, key: Reader, file_id: str, model: Name = None, validation_file: Id = None
) -> Response:
    """What was found in a file; what it is to a model the page asks for."""
    file = files.read_file(parts.database, key.owner, file_id)
    others, _ = files.read_files(parts.database, key.owner, Page(AT_ONCE), files.PURPOSE)
    names = models.registered_names(parts.database, key.owner)
    return page(
        request,
        "file.html",
        file=file,
        models=names,
        model=model or next(iter(names), ""),
        validation_file=validation_file or "",
        others=[other for other in others if other.id != file.id and other.status == "processed"],
    )


@router.get("/{file_id}/problems")
@reading
def problems(request: Request, parts: Parts, key: Reader, file_id: str, start: Start = 0) -> Response:
    """Bad lines, each with what would be right."""
    file = files.read_file(parts.database, key.owner, file_id)
    start = min(start, FURTHEST)
    found = files.problems_of(parts.store, file, start, PROBLEMS + 1)
    return part(
        request,
        "file_problems.html",
        file=file,
        problems=found[:PROBLEMS],
        before=max(start - PROBLEMS, 0) if start else None,
        behind=start + PROBLEMS if len(found) > PROBLEMS and start < FURTHEST else None,
    )


@router.get("/{file_id}/insight")
def insight(
    request: Request, parts: Parts, key: Reader, file_id: str, model: Name = None, validation_file: Id = None
) -> Response:
    """What the file is to a model: lengths, the first lines as they are trained on, and overlap. The part asks again
    until the engine has looked."""
    file = files.read_file(parts.database, key.owner, file_id)
    values: dict[str, Any] = {"file": file, "model": model or "", "validation_file": validation_file or ""}
    try:
        asked = insights.question(parts.database, key.owner, file_id, model or "", validation_file or None)
        found = parts.insights.of(asked)
    except DomainError as error:
        return part(request, "file_insight.html", refused=error.message, insight=None, **values)
    if found is None:
        return part(request, "file_insight.html", {"refresh": "1"}, refused=None, insight=None, **values)
    return part(request, "file_insight.html", refused=None, insight=found, chart=_chart(found), **values)


def _chart(found: insights.Insight) -> Markup | None:
    counted = found["tokens"]["histogram"]
    return histogram("Sequences by their length", counted["counts"], counted["width"], "tokens") if counted else None


@router.post("/{file_id}/delete")
def delete(request: Request, parts: Parts, key: Submitter, file_id: str) -> Response:
    """Forgets a file; jobs that began with it go on."""
    files.delete_file(parts.database, key.owner, file_id)
    return leads_to(request, f"{PAGES}/files")
