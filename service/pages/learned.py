"""What a job learned: where its masks lie, how good its models are, which tokens were forgotten, which answers
changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from allo_engine import rounds
from allo_engine.rounds import kind_of, round_of
from service.api.context import Parts, Reader
from service.api.reading import reading
from service.jobs import learned, service
from service.jobs.errors import Conflict, InvalidRequest, NotFound
from service.jobs.learned import Change, Report, Token
from service.jobs.service import JobView
from service.pages.charts import heat_map
from service.pages.maps import grid_of, outside_of
from service.pages.measures import measures_of, named
from service.pages.parts import Start, paging, part
from service.pages.rendering import page

router = APIRouter(prefix="/jobs/{job_id}/learned")

RESPONSES, ANSWERS = 3, 10
"""How many are on a page."""

LEAST = 3
"""Tokens that are told in words, the least likely of a response."""

Mask = Annotated[str, Query(pattern=r"^(forget|improve)(-[2-9]|-[1-9]\d)?$")]
"""The stage that trains in it: `improve-2` is that of the second round."""

Name = Annotated[str | None, Query(max_length=64)]


@router.get("")
@reading
def show(request: Request, parts: Parts, key: Reader, job_id: str, mask: Mask | None = None) -> Response:
    """The masks and the measures; responses and answers are asked for by the page."""
    view = service.read(parts.database, key.owner, job_id)
    masks = _masks(view)
    mask = mask or masks[-1]
    layers = learned.where(parts.store, view, rounds.named("locate", round_of(mask)))
    report, too_large = None, None
    try:
        report = learned.report(parts.store, view)
    except Conflict as error:
        too_large = error.message
    grid = grid_of(layers, kind_of(mask)) if layers else None
    return page(
        request,
        "learned.html",
        job=view.job,
        mask=mask,
        masks=masks,
        grid=grid,
        map=heat_map(f"Share of each module that the mask of stage {mask} takes", grid) if grid and grid.rows else None,
        outside=outside_of(layers, kind_of(mask)) if layers else [],
        measures=measures_of(report) if report else [],
        answered=report is not None and _has_answers(report),
        rewarded=any(stage.name == "token_rewards" for stage in view.stages),
        too_large=too_large,
    )


def _masks(view: JobView) -> list[str]:
    """The stages that train in masks of their own, the last one's of which the aligned model is: later rounds may
    locate theirs anew."""
    later = [round_of(stage.name) for stage in view.stages if kind_of(stage.name) == "locate"]
    return ["forget", "improve", *(rounds.named("improve", number) for number in later if number > 1)]


# --- wrong responses


@router.get("/responses")
@reading
def responses(request: Request, parts: Parts, key: Reader, job_id: str, start: Start = 0) -> Response:
    """Some wrong responses, token by token."""
    view = service.read(parts.database, key.owner, job_id)
    found = learned.responses(parts.store, view)
    shown = [(wrong, *_forgotten(wrong.tokens)) for wrong in found[start : start + RESPONSES]]
    return part(
        request, "learned_responses.html", job=view.job, responses=shown, **paging(start, RESPONSES, len(found))
    )


def _forgotten(tokens: Sequence[Token]) -> tuple[int, list[Token]]:
    """How many are, and the least likely of them."""
    found = [token for token in tokens if token.weight > 0]
    return len(found), sorted(found, key=lambda token: token.probability)[:LEAST]


# --- answers that changed


@router.get("/answers")
@reading
def answers(
    request: Request,
    parts: Parts,
    key: Reader,
    job_id: str,
    ours: Name = None,
    theirs: Name = None,
    change: Literal["all", "gained", "lost"] = "all",
    start: Start = 0,
) -> Response:
    """Answers of two of the job's models side by side, where one is right and the other is not."""
    view = service.read(parts.database, key.owner, job_id)
    report = learned.report(parts.store, view)
    if report is None:
        raise NotFound("This job was not evaluated, or has yet to be.")
    names = [row["model"] for row in report["models"]]
    ours, theirs = _known(ours or names[-1], names), _known(theirs or _start_of(names), names)
    changed = learned.changes(report, ours, theirs)
    wanted = [place for place, way in changed.items() if change in ("all", way)]
    here: dict[int, Change] = {place: changed[place] for place in wanted[start : start + ANSWERS]}
    found = list(learned.answers(parts.store, view, here, ours, theirs))
    return part(
        request,
        "learned_answers.html",
        job=view.job,
        answers=found,
        models=[(name, named(name)) for name in names],
        ours=ours,
        theirs=theirs,
        change=change,
        cases=len(report["cases"]),
        gained=sum(way == "gained" for way in changed.values()),
        lost=sum(way == "lost" for way in changed.values()),
        **paging(start, ANSWERS, len(wanted)),
    )


def _has_answers(report: Report) -> bool:
    return len(report["models"]) > 1 and "cases" in report and all("cases" in row for row in report["models"])


def _start_of(names: Sequence[str]) -> str:
    """The model that alignment started from."""
    return "sft" if "sft" in names[:-1] else names[0]


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise InvalidRequest(f"The report has no model {name!r}; it has {', '.join(names)}.")
    return name
