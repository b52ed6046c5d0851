"""What an owner does with jobs: submit, read, cancel, retry. One verb, one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.errors import Busy, Conflict, NotFound
from service.jobs.lifecycle import JOB_ENDED, JobStatus, StageStatus, move
from service.jobs.placement import Offer
from service.jobs.progression import add_event, advance, cancel_unstarted, settle
from service.jobs.repository import Page
from service.jobs.submission import NewJob, Sender, check_limit, create, remember, repeated, tell_missing
from service.jobs.tables import Artifact, Event, Job, Stage
from service.storage.store import Store


@dataclass(frozen=True)
class JobView:
    """A job with its stages in running order, the files that they wrote, and how long each stage took (seconds) when
    the owner last ran it on the same model and file."""

    job: Job
    stages: tuple[Stage, ...]
    artifacts: tuple[Artifact, ...]
    earlier_seconds: Mapping[str, int]


def submit(
    database: Database, store: Store, new: NewJob, sender: Sender, offers: Sequence[Offer] | None = None
) -> JobView:
    """Makes a job, its stages and its first events; or finds the job that this very request made before. `offers` is
    what the workers that live have, where the caller knows: what none of them has is told.

    Raises PlanError, InvalidRequest or NotFound, naming the field, for what cannot run; TooMany at the owner's limit.
    """
    with database.transaction() as session:
        now = database.now()
        repository.lock_key(session, sender.key_id)
        job = repeated(session, sender, now)
        if job is None:
            check_limit(session, sender)
            job = create(session, store, new, sender, now)
            advance(session, store, job, now)
            if offers is not None:
                tell_missing(session, job, offers, now)
            remember(session, sender, job, now)
        return _view(session, job)


def read(database: Database, owner: str, job_id: str) -> JobView:
    """The job. Raises NotFound."""
    with database.snapshot() as session:
        return _view(session, _owned(session, owner, job_id))


def read_page(
    database: Database, owner: str, page: Page, metadata: Mapping[str, str] | None = None
) -> tuple[list[JobView], bool]:
    """Jobs that have all of `metadata`, and whether there are more. Raises NotFound for an unknown `page.after`."""
    with database.snapshot() as session:
        if page.after is not None and repository.job(session, owner, page.after) is None:
            raise NotFound(f"No fine-tuning job {page.after!r} to go on after.", "after")
        jobs, more = repository.jobs(session, owner, page, metadata or {})
        return _views(session, jobs), more


def read_events(database: Database, owner: str, job_id: str, page: Page) -> tuple[list[Event], bool]:
    """The job's events. Raises NotFound, for an unknown `page.after` too."""
    with database.snapshot() as session:
        _owned(session, owner, job_id)
        if page.after is not None and not repository.has_event(session, job_id, page.after):
            raise NotFound(f"No event {page.after!r} of this job to go on after.", "after")
        return repository.events(session, job_id, page)


def read_artifact(database: Database, owner: str, artifact_id: str) -> Artifact:
    """One file that a stage wrote. Raises NotFound."""
    with database.snapshot() as session:
        artifact = repository.artifact(session, owner, artifact_id)
        if artifact is None:
            raise NotFound(f"No artifact {artifact_id!r}.")
        return artifact


def cancel(database: Database, owner: str, job_id: str) -> JobView:
    """Ends a job: what has not started never will, what runs is told with its next heartbeat, and the job is
    `cancelled` once it stopped. Once more changes nothing; of a job that ended otherwise it is a Conflict."""
    with database.transaction() as session:
        job = _locked(session, owner, job_id)
        if job.status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            raise Conflict(f"The job has already {job.status.value}: there is nothing to cancel.")
        if not job.cancel_requested:
            now = database.now()
            job.cancel_requested = True
            add_event(session, job, now, "info", "Cancelling the job.", {})
            cancel_unstarted(session, job, now)
            settle(session, job, now)
        return _view(session, job)


def retry(database: Database, store: Store, owner: str, job_id: str) -> JobView:
    """Runs a failed or cancelled job again from where it ended. Raises Conflict for any other job."""
    with database.transaction() as session:
        job, now = _locked(session, owner, job_id), database.now()
        stages = repository.stages(session, [job.id])
        if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise Conflict(f"The job is {job.status.value}: only a failed or cancelled job can be retried.")
        if any(stage.status is StageStatus.RUNNING for stage in stages):
            raise Busy("A stage of the job is still stopping: retry in a moment.")
        job.status, job.finished_at, job.error = move(job.status, JobStatus.QUEUED), None, None
        job.cancel_requested = False
        for stage in stages:
            _reset(stage)
        session.flush()
        add_event(session, job, now, "info", "The job runs again from where it ended.", {})
        advance(session, store, job, now)
        return _view(session, job)


def _owned(session: Session, owner: str, job_id: str) -> Job:
    job = repository.job(session, owner, job_id)
    if job is None:
        raise NotFound(f"No fine-tuning job {job_id!r}.")
    return job


def _locked(session: Session, owner: str, job_id: str) -> Job:
    locked = repository.lock_job(session, _owned(session, owner, job_id).id)
    assert locked is not None
    return locked


def _reset(stage: Stage) -> None:
    if stage.status in (StageStatus.FAILED, StageStatus.CANCELLED):
        stage.status = move(stage.status, StageStatus.WAITING)
        stage.attempt, stage.error, stage.finished_at = 0, None, None
        stage.step = stage.total = stage.resumed_step = None


def _view(session: Session, job: Job) -> JobView:
    return _views(session, [job])[0]


def _views(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    session.flush()
    stages = repository.stages(session, [job.id for job in jobs])
    artifacts = repository.artifacts(session, [stage.id for stage in stages])
    views = []
    for job in jobs:
        own = tuple(stage for stage in stages if stage.job_id == job.id)
        names = {stage.id for stage in own}
        earlier = {} if job.status in JOB_ENDED else repository.earlier_seconds(session, job)
        views.append(JobView(job, own, tuple(row for row in artifacts if row.stage_id in names), earlier))
    return views
