"""The list of jobs: its own to everyone, everybody's to an admin, as a line each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response

from allo_engine.pipeline import METHODS
from service.api.context import Parts, Reader
from service.api.reading import reading
from service.jobs import service
from service.jobs.errors import InvalidRequest
from service.jobs.estimates import job_eta, job_fraction
from service.jobs.lifecycle import JOB_ENDED, JobStatus, StageStatus
from service.jobs.repository import Page
from service.jobs.repository.looking import Wanted
from service.jobs.service import JobLine
from service.jobs.tables import ApiKey
from service.pages.rendering import page

router = APIRouter(prefix="/jobs")

AT_ONCE = 50

Asked = Annotated[str, Query(max_length=255)]


@dataclass(frozen=True)
class Filter:
    """What the form above the list asks for; an empty field asks for nothing."""

    text: Asked = ""
    status: Asked = ""
    method: Asked = ""
    model: Asked = ""
    owner: Asked = ""

    def wanted(self, key: ApiKey) -> Wanted:
        """Raises InvalidRequest for a status that there is not."""
        if self.status and self.status not in [*JobStatus]:
            raise InvalidRequest(f"A job's status is one of {', '.join(JobStatus)}.", "status")
        status = JobStatus(self.status) if self.status else None
        owner = (self.owner or None) if sees_all(key) else key.owner
        return Wanted(owner, status, self.method or None, self.model or None, self.text.strip() or None)

    def query(self) -> str:
        """The same, as a page's address has it."""
        return urlencode({name: value for name, value in vars(self).items() if value})


def sees_all(key: ApiKey) -> bool:
    """Whether the list has everybody's jobs. What is behind a line opens for its owner alone."""
    return "admin" in key.scopes


@router.get("")
@reading
def index(
    request: Request,
    parts: Parts,
    key: Reader,
    asked: Annotated[Filter, Depends()],
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """The jobs, newest first."""
    wanted, now = asked.wanted(key), parts.database.now()
    views, more = service.look_for(parts.database, wanted, Page(AT_ONCE, after))
    models, owners = service.names_in_use(parts.database, None if sees_all(key) else key.owner)
    lines = [line(view, now) for view in views]
    return page(
        request,
        "jobs.html",
        lines=lines,
        older=f"?{urlencode({'after': lines[-1]['id']})}&{asked.query()}".rstrip("&") if more else None,
        newest=after is not None,
        asked=asked,
        moving=any(view.job.status not in JOB_ENDED for view in views),
        statuses=[*JobStatus],
        methods=METHODS,
        models=models,
        owners=owners if sees_all(key) else (),
    )


def line(view: JobLine, now: int) -> Mapping[str, Any]:
    """A job in a line."""
    job = view.job
    at_work = [stage.name for stage in view.stages if stage.status is StageStatus.RUNNING]
    eta = job_eta(view.stages, view.known_seconds, now) if job.status is JobStatus.RUNNING else None
    return {
        "id": job.id,
        "name": job.suffix or job.id,
        "owner": job.owner,
        "status": job.status,
        "stopping": job.cancel_requested and job.status not in JOB_ENDED,
        "at": " and ".join(at_work),
        "model": job.model,
        "method": view.method,
        "fraction": job_fraction(view.stages),
        "left": eta,
        "took": None if job.finished_at is None else job.finished_at - job.created_at,
        "created_at": job.created_at,
    }
