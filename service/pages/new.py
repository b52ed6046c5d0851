"""A new job: a form of the engine's own settings, with what the job will take as one types it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, cast

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from allo_engine.pipeline import METHODS, Data, Format, PlanError
from service.api import jobs as api
from service.api import render
from service.api.context import Context, Parts, Submitter
from service.api.errors import problems, status_of
from service.api.estimate import estimated
from service.api.guard import PAGES
from service.api.reading import reading
from service.api.schemas import CreateJob
from service.jobs import service
from service.jobs.access.trackers import TITLES, read_places
from service.jobs.data import files
from service.jobs.errors import DomainError
from service.jobs.registry import models
from service.jobs.repository import Page
from service.jobs.tables import ApiKey
from service.pages.asking import TRACKERS, Asked, like
from service.pages.fields import defaults_of, shared_of, stages_of
from service.pages.rendering import page
from service.pages.samples import samples
from service.pages.sending import sent_once
from service.pages.words import short

router = APIRouter(prefix="/new")

MOST = 50
"""Files and models that are offered, the newest; where there are more, any other is put in by its name."""

PATIENCE = 4.0
"""Seconds that a page waits for an estimate; it asks again while one is being worked out."""

Wrong = dict[str, str]
"""Messages by the fields that they belong to."""

Name = Annotated[str | None, Query(max_length=255)]


async def filled(request: Request) -> Asked:
    """The form as it came; what was put in goes before what was chosen in a field of the same name."""
    form = (await request.form()).multi_items()
    return Asked({name: value.strip() for name, value in form if isinstance(value, str) and value.strip()})


Form = Annotated[Asked, Depends(filled)]


@router.get("")
@reading
def show(
    request: Request,
    parts: Parts,
    key: Submitter,
    model: Name = None,
    training_file: Name = None,
    method: Name = None,
    like_job: Annotated[str | None, Query(alias="like", max_length=64)] = None,
) -> Response:
    """The form; `like` fills it in as an earlier job was, the other parameters one field each."""
    given = {"model": model, "training_file": training_file, "method": method}
    typed = {name: value for name, value in given.items() if value}
    if like_job:
        now = parts.database.now()
        typed = like(render.job(service.read(parts.database, key.owner, like_job), now, [])) | typed
    return _form(request, parts, key, Asked(typed))


@router.post("")
def create(request: Request, parts: Parts, key: Submitter, asked: Form) -> Response:
    """Submits the job, or shows what is wrong with it where it is wrong. A form sent twice is one job."""
    if "show" in asked.typed:
        return _form(request, parts, key, asked)
    try:
        body = CreateJob.model_validate(asked.body())
        job = sent_once(parts, key, request, asked.typed.get("sending", ""), lambda: api.submit(parts, key, body))
    except (ValidationError, DomainError, PlanError) as error:
        status = 422 if isinstance(error, ValidationError) else status_of(error)
        return _form(request, parts, key, asked, status, _wrong(asked, error))
    parts.expectations.later(key.owner, job["id"])
    return RedirectResponse(f"{PAGES}/jobs/{job['id']}", 303)


@router.post("/stages")
def stages(request: Request, _key: Submitter, asked: Form) -> Response:
    """The settings of another method's stages."""
    return page(request, "new_stages.html", **_settings(asked))


@router.post("/estimate")
async def estimate(request: Request, parts: Parts, key: Submitter, asked: Form) -> Response:
    """What the job will take, how it is asked for from elsewhere, and what its fields stand at. While that is being
    worked out the part asks again by itself."""
    values: dict[str, Any] = {"wrong": {}, "estimate": None, "counting": False}
    try:
        body = CreateJob.model_validate(asked.body())
        values["estimate"] = await asyncio.wait_for(estimated(request, parts, key, body), PATIENCE)
    except TimeoutError:
        values["counting"] = True
    except (ValidationError, DomainError, PlanError) as error:
        values["wrong"] = _wrong(asked, error)
    request.state.audited = True  # it changes nothing
    written = samples(asked.body(), str(request.base_url.replace(path="")).rstrip("/"))

    def answer() -> Response:
        found = _defaults(parts, key.owner, asked)
        return page(request, "new_estimate.html", samples=written, defaults=found, **values)

    return await to_thread.run_sync(answer)


def _defaults(parts: Context, owner: str, asked: Asked) -> Mapping[str, str]:
    """What the job's fields stand at that is not as published; none while nobody can say which job it will be."""
    method = asked.body()["method"].get(asked.method, {})
    try:
        file = files.read_file(parts.database, owner, asked.typed.get("training_file", ""))
        data = Data(cast(Format, file.format), masks="masks" in asked.typed)
        return defaults_of(asked.method, data, method.get("stages", {}), method.get("hyperparameters", {}))
    except (DomainError, PlanError):
        return {}


def _wrong(asked: Asked, error: Exception) -> Wrong:
    if isinstance(error, ValidationError):
        found = problems(error.errors())
    else:
        assert isinstance(error, DomainError | PlanError)
        found = [(error.param or "", error.message)]
    return {asked.field(param): message for param, message in reversed(found)}


def _form(
    request: Request, parts: Context, key: ApiKey, asked: Asked, status: int = 200, wrong: Wrong | None = None
) -> Response:
    kept, more_files = files.read_files(parts.database, key.owner, Page(MOST), files.PURPOSE)
    usable = [file for file in kept if file.status == "processed"]
    names = models.names(parts.database, key.owner, MOST)
    return page(
        request,
        "new.html",
        status,
        methods=METHODS,
        models=[(name, name) for name in names],
        data=[(file.id, f"{short(file.filename)} ({file.format}, {file.rows} rows)") for file in usable],
        corrections=[(file.id, short(file.filename)) for file in usable if file.format == "corrections"],
        other_model=len(names) >= MOST and "Another model",
        other_file=more_files and "Another file's id",
        trackers=[(kind, TITLES[kind], TRACKERS[kind]) for kind in read_places(parts.settings.trackers)],
        sending=secrets.token_urlsafe(16),
        **_settings(asked, wrong),
    )


def _settings(asked: Asked, wrong: Wrong | None = None) -> dict[str, Any]:
    """What the part with the stages needs."""
    return {
        "method": asked.method,
        "shared": shared_of(asked.method),
        "stages": stages_of(asked.method),
        "typed": asked.typed,
        "wrong": wrong or {},
    }
