"""What an owner does with jobs: submit, read, put before or behind others, pause, resume, cancel, retry, delete.

One verb, one transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.again import check_sources, following, reset
from service.jobs.errors import Busy, Conflict, NotFound
from service.jobs.estimates import known_seconds
from service.jobs.lifecycle import JOB_ENDED, JobStatus, Priority, StageStatus, move
from service.jobs.presence import asks_apart
from service.jobs.progression import (
    add_event,
    advance,
    cancel_unstarted,
    checkpoint_model,
    hold_unstarted,
    line_of,
    settle,
)
from service.jobs.repository import Page, holdings, looking, tracked
from service.jobs.repository.looking import Wanted
from service.jobs.running.placement import Offer
from service.jobs.submission import NewJob, Sender, admit, check_limit, check_priority, create, tell_missing
from service.jobs.tables import Artifact, Event, Job, Stage
from service.storage.store import Store


@dataclass(frozen=True)
class JobView:
    """A job with its stages in running order, how long each stage took (seconds) when the owner last ran it on the same
    model and file, and the files that the stages wrote; a list reads none."""

    job: Job
    stages: tuple[Stage, ...]
    earlier_seconds: Mapping[str, int]
    artifacts: tuple[Artifact, ...] | None = None

    @cached_property
    def files(self) -> Mapping[str, list[Artifact]]:
        """The files by the stage that wrote them."""
        found = defaultdict[str, list[Artifact]](list)
        for row in self.artifacts or ():
            found[row.stage_id].append(row)
        return found


@dataclass(frozen=True)
class JobLine:
    """A job as a line tells of it: its method, its stages without what they are given and found, and, while it runs,
    how long each takes, as far as that is known."""

    job: Job
    method: str
    stages: tuple[Stage, ...]
    known_seconds: Mapping[str, int]


@asks_apart
def submit(
    database: Database, store: Store, new: NewJob, sender: Sender, offers: Sequence[Offer] | None = None
) -> JobView:
    """Makes a job, its stages and its first events. `offers` is what the workers that live have, where the caller
    knows: what none of them has is told.

    Raises PlanError, InvalidRequest or NotFound, naming the field, for what cannot run; TooMany at the owner's limit.
    """
    with database.transaction() as session:
        now = database.now()
        check_limit(session, sender, now)
        job = create(session, admit(session, store, new, sender, now), now)
        advance(session, store, job, now)
        view = _view(session, job)
        if offers is not None:
            tell_missing(session, job, view.stages, offers, now)
        return view


def read(database: Database, owner: str, job_id: str) -> JobView:
    """The job. Raises NotFound."""
    with database.snapshot() as session:
        return _view(session, _owned(session, owner, job_id))


def read_page(
    database: Database, owner: str, page: Page, metadata: Mapping[str, str] | None = None
) -> tuple[list[JobView], bool]:
    """Jobs that have all of `metadata`, and whether there are more. Raises NotFound for an unknown `page.after`."""
    with database.snapshot() as session:
        jobs, more = repository.jobs_shown(session, owner, page, metadata or {})
        stages, earlier = defaultdict(list), _earlier(session, jobs)
        for stage in repository.stages_shown(session, [job.id for job in jobs]):
            stages[stage.job_id].append(stage)
        return [JobView(job, tuple(stages[job.id]), earlier[_source(job)]) for job in jobs], more


def look_for(database: Database, wanted: Wanted, page: Page) -> tuple[list[JobLine], bool]:
    """Jobs that are as wanted, and whether there are more. Raises NotFound for an unknown `page.after`."""
    with database.snapshot() as session:
        jobs, more = looking.found(session, wanted, page)
        ids, stages = [job.id for job in jobs], defaultdict(list)
        for stage in looking.stages(session, ids):
            stages[stage.job_id].append(stage)
        methods = looking.methods(session, ids)
        running = [job for job in jobs if job.status is JobStatus.RUNNING]
        earlier = _earlier(session, running)
        known = {job.id: known_seconds(job.estimate, earlier[_source(job)]) for job in running}
        lines = [JobLine(job, methods[job.id], tuple(stages[job.id]), known.get(job.id, {})) for job in jobs]
        return lines, more


def names_in_use(database: Database, owner: str | None) -> tuple[Sequence[str], Sequence[str]]:
    """The models that jobs begin with, and their owners; of one owner's jobs or of all."""
    with database.snapshot() as session:
        return looking.models(session, owner), [owner] if owner is not None else looking.owners(session)


def read_events(database: Database, owner: str, job_id: str, page: Page) -> tuple[list[Event], bool]:
    """The job's events. Raises NotFound, for an unknown `page.after` too."""
    with database.snapshot() as session:
        _owned(session, owner, job_id)
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


def pause(database: Database, owner: str, job_id: str) -> JobView:
    """Rests a job: nothing more of it starts, and what runs is told with its next heartbeat to stop at a checkpoint and
    to give its device back. Once more changes nothing; of a job that has ended, or is to, it is a Conflict."""
    with database.transaction() as session:
        job = _unended(session, owner, job_id, "paused")
        if job.status is not JobStatus.PAUSED:
            job.status = move(job.status, JobStatus.PAUSED)
            running = _running(session, job)
            stops = f"Pausing the job: {' and '.join(running)} will stop at a checkpoint."
            add_event(session, job, database.now(), "info", stops if running else "The job is paused.", {})
            hold_unstarted(session, job)
        return _view(session, job)


@asks_apart
def resume(database: Database, store: Store, owner: str, job_id: str) -> JobView:
    """Lets a paused job go on from its checkpoints, to the result that it would have had. Of a job that is not paused
    it changes nothing; of one that has ended, or is to, it is a Conflict."""
    with database.transaction() as session:
        job = _unended(session, owner, job_id, "resumed")
        if job.status is JobStatus.PAUSED:
            job.status = move(job.status, JobStatus.RUNNING if _running(session, job) else JobStatus.QUEUED)
            add_event(session, job, database.now(), "info", "The job goes on.", {})
            advance(session, store, job, database.now())
        return _view(session, job)


def prioritise(database: Database, owner: str, job_id: str, priority: Priority, admin: bool) -> JobView:
    """Has what is yet to start of a job go before others', or behind. Raises Forbidden where that takes an admin's key,
    Conflict for a job that has ended, or is to."""
    check_priority(priority, admin)
    with database.transaction() as session:
        job = _unended(session, owner, job_id, "moved")
        if job.priority != priority:
            job.priority = priority
            for stage in repository.stages(session, [job.id]):
                stage.line = line_of(job, stage)
            add_event(session, job, database.now(), "info", f"The job's priority is {priority.word} now.", {})
        return _view(session, job)


@asks_apart
def retry(
    database: Database,
    store: Store,
    owner: str,
    job_id: str,
    start: str | None = None,
    max_seconds: int | None = None,
) -> JobView:
    """Runs a failed or cancelled job again from where it ended, with all of its time; with `max_seconds`, with so much.
    From stage `start` on, that stage and whatever reads of it are computed anew, though their results be there. Raises
    Conflict for any other job, InvalidRequest for a stage that it has not."""
    with database.transaction() as session:
        job, now = _locked(session, owner, job_id), database.now()
        stages = repository.stages(session, [job.id])
        if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise Conflict(f"The job is {job.status.value}: only a failed or cancelled job can be retried.")
        if any(stage.status is StageStatus.RUNNING for stage in stages):
            raise Busy("A stage of the job is still stopping: retry in a moment.")
        anew = [] if start is None else following(stages, start)
        check_sources(store, job, [stage for stage in stages if stage not in anew])
        job.status, job.finished_at, job.error = move(job.status, JobStatus.QUEUED), None, None
        job.cancel_requested, job.max_seconds = False, max_seconds or job.max_seconds
        lost = [stage for stage in stages if stage in anew or stage.let_go]
        models = [checkpoint_model(job, stage.name) for stage in lost]
        holdings.drop_results(session, [stage.id for stage in lost], models)
        for stage in stages:
            reset(stage, stage in anew)
        session.flush()
        names = " and ".join(stage.name for stage in anew)
        how = f": {names} computed anew" if anew else " from where it ended"
        add_event(session, job, now, "info", f"The job runs again{how}.", {})
        tracked.hurry(session, job.id, now)
        advance(session, store, job, now)
        return _view(session, job)


def delete(database: Database, owner: str, job_id: str) -> None:
    """Forgets a job that has ended and all that it left: the models too that its stages made, with their exports, and
    what is due to webhooks. A stage of another job that took over a result of its has that for itself, and passes it
    on. Raises NotFound, Conflict while the job may go on by itself, Busy while a stage of its is still stopping."""
    with database.transaction() as session:
        job = _locked(session, owner, job_id)
        if job.status not in JOB_ENDED:
            raise Conflict(f"The job is {job.status.value}: cancel it first, or let it end.")
        if _running(session, job):
            raise Busy("A stage of the job is still stopping: delete it in a moment.")
        holdings.drop_job(session, job)


def _owned(session: Session, owner: str, job_id: str) -> Job:
    job = repository.job(session, owner, job_id)
    if job is None:
        raise NotFound(f"No fine-tuning job {job_id!r}.")
    return job


def _locked(session: Session, owner: str, job_id: str) -> Job:
    locked = repository.lock_job(session, _owned(session, owner, job_id).id)
    if locked is None:  # it was deleted while this waited
        raise NotFound(f"No fine-tuning job {job_id!r}.")
    return locked


def _unended(session: Session, owner: str, job_id: str, verb: str) -> Job:
    job = _locked(session, owner, job_id)
    if job.status in JOB_ENDED:
        raise Conflict(f"The job has already {job.status.value}: it cannot be {verb}.")
    if job.cancel_requested:
        raise Conflict(f"The job is being cancelled: it cannot be {verb}.")
    return job


def _running(session: Session, job: Job) -> list[str]:
    """The names of the stages that a worker has claimed."""
    return [stage.name for stage in repository.stages(session, [job.id]) if stage.status is StageStatus.RUNNING]


def _view(session: Session, job: Job) -> JobView:
    session.flush()
    stages = repository.stages(session, [job.id])
    artifacts = repository.artifacts(session, [stage.id for stage in stages])
    return JobView(job, tuple(stages), _earlier(session, [job])[_source(job)], tuple(artifacts))


def _earlier(session: Session, jobs: Sequence[Job]) -> Mapping[tuple[str, str, str], Mapping[str, int]]:
    """How long stages took before, by whose job it is and what it begins with; nothing of jobs that have ended."""
    unended = {_source(job) for job in jobs if job.status not in JOB_ENDED}
    found = {source: repository.earlier_seconds(session, *source) for source in unended}
    return defaultdict(dict, found)


def _source(job: Job) -> tuple[str, str, str]:
    return job.owner, job.model, job.training_file
