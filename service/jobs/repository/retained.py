"""Queries about what stages made on a job's way to its result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session, aliased

from service.jobs.lifecycle import JOB_ENDED, JobStatus, StageStatus
from service.jobs.tables import Artifact, Export, Job, Model, Stage


def stage_names(session: Session) -> dict[str, list[str]]:
    """Of every job that has ended."""
    query = select(Stage.job_id, Stage.name).join(Job, Job.id == Stage.job_id).where(Job.status.in_(JOB_ENDED))
    found = defaultdict[str, list[str]](list)
    for job_id, name in session.execute(query.order_by(Stage.job_id, Stage.position)):
        found[job_id].append(name)
    return found


def ended_results(session: Session, retriable_since: int) -> Iterator[tuple[str, str, int, str, str, int]]:
    """(owner, job, when it ended, stage's name, sha256, bytes) of every file of a succeeded stage whose job has
    ended, the latest job first; without jobs that may be retried, and those whose owner has an unfinished one with the
    same model and training file, which may take something over."""
    other = aliased(Job)
    same = and_(other.owner == Job.owner, other.model == Job.model, other.training_file == Job.training_file)
    unfinished = select(other.id).where(same, other.status.not_in(JOB_ENDED)).correlate(Job).exists()
    over = or_(Job.status == JobStatus.SUCCEEDED, Job.finished_at < retriable_since)
    columns = (Job.owner, Job.id, Job.finished_at, Stage.name, Artifact.sha256, Artifact.bytes)
    query = select(*columns).join(Stage, Stage.job_id == Job.id).join(Artifact, Artifact.stage_id == Stage.id)
    query = query.where(Job.status.in_(JOB_ENDED), over, ~unfinished)
    query = query.where(Stage.status == StageStatus.SUCCEEDED, Stage.digest.is_not(None))
    query = query.order_by(Job.finished_at.desc(), Job.id.desc()).execution_options(yield_per=1000)
    yield from map(tuple, session.execute(query))


def drop_artifacts(session: Session, ids: Sequence[str]) -> None:
    session.execute(delete(Artifact).where(Artifact.id.in_(ids)))


def drop_model(session: Session, owner: str, name: str) -> None:
    """Forgets a model of the owner's, unless it is there in another form, too."""
    exported = select(Export.id).where(Export.model == name).exists()
    session.execute(delete(Model).where(Model.id == name, Model.owner == owner, ~exported))
