"""Models that are tried: one prompt to several of them, side by side. What is said stays in the page."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from service.api import chat, render
from service.api.asked import CreateChat
from service.api.context import Context, Parts, Reader, is_json
from service.api.reading import reading
from service.jobs import service
from service.jobs.registry import models
from service.jobs.trying import MOST_TOKENS
from service.pages.measures import named
from service.pages.rendering import page

router = APIRouter(prefix="/try")

MOST = 5
"""Models side by side: as many as a job of one round has."""

Name = Annotated[str, Query(max_length=255)]


@router.get("")
@reading
def show(
    request: Request,
    parts: Parts,
    key: Reader,
    job: Annotated[str | None, Query(max_length=64)] = None,
    model: Annotated[list[Name] | None, Query(max_length=MOST)] = None,
) -> Response:
    """The form: with the models that are named, or with all of a job's."""
    made = _of_job(parts, key.owner, job) if job else {}
    chosen = model or list(made)
    offered = dict.fromkeys(models.registered_names(parts.database, key.owner), "") | made
    return page(
        request,
        "trying.html",
        job=job,
        chosen=[*chosen, *[""] * MOST][:MOST],
        offered=offered,
        most_tokens=MOST_TOKENS,
    )


@router.post("/answer", response_model=None, dependencies=[Depends(is_json)])
async def answer(request: Request, parts: Parts, key: Reader, body: CreateChat) -> Any:
    """One model's answer as it grows, in the API's own form: the page asks once for each."""
    return await chat.create(request, parts, key, body.model_copy(update={"stream": True}))


def _of_job(parts: Context, owner: str, job_id: str) -> dict[str, str]:
    """A job's models by their names, each with what people call it; of many, where it began and where it got to."""
    view = service.read(parts.database, owner, job_id)
    left = {row["fine_tuned_model_checkpoint"]: named(row["stage"]) for row in reversed(render.checkpoints(view))}
    found = {view.job.model: named("base"), **left}
    result = view.job.fine_tuned_model
    if result and left:
        found[result] = found.pop(list(left)[-1])  # the same model, by its shorter name
    names = list(found)
    return {name: found[name] for name in (names if len(names) <= MOST else [*names[: MOST - 1], names[-1]])}
