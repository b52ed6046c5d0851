"""What becomes of a stage that cannot read what it needs: the stage that made it makes it again, where one did."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.lifecycle import StageStatus, move
from service.jobs.presence import asks_apart, is_there
from service.jobs.progression import add_event, advance, needs
from service.jobs.repository import damaged
from service.jobs.running import attempts
from service.jobs.tables import Artifact, Job, Stage
from service.storage.store import Store


@asks_apart
def lose(database: Database, store: Store, stage_id: str, epoch: int, sha256: str) -> bool:
    """Ends an attempt that could not read the content `sha256`.

    Where it is damaged and a stage of the job made it, that one runs again, and this one behind it; what comes from
    outside has to be brought again. What is merely not there may be there for another worker: it is tried again.
    """
    with database.transaction() as session:
        job, stage = repository.lock_job_of(session, stage_id), repository.stage(session, stage_id)
        if job is None or stage is None:
            return False
        again = _damaged_makers(session, store, job, stage)
        retry = bool(again) or not damaged.noted(session, sha256)
        if not attempts.fail(database, stage_id, epoch, "corrupt_artifact", _said(job, stage, sha256, again), retry):
            return False
        if again and stage.status in (StageStatus.READY, StageStatus.WAITING):
            if stage.status is StageStatus.READY:
                stage.status = move(stage.status, StageStatus.WAITING)
            for maker in again:
                _unmake(session, job, maker, database.now())
            session.flush()
            advance(session, store, job, database.now())
        return True


def _damaged_makers(session: Session, store: Store, job: Job, stage: Stage) -> list[Stage]:
    """The stages that made what this one reads, and what those read, as far as that is damaged."""
    by_name = {other.name: other for other in repository.stages(session, [job.id])}
    found, unread = list[Stage](), list(needs(stage))
    while unread:
        maker = by_name[unread.pop()]
        rows = repository.artifacts(session, [maker.id])
        if maker not in found and any(
            damaged.noted(session, row.sha256) and not is_there(store, row.sha256) for row in rows
        ):
            found.append(maker)
            unread += needs(maker)
    return found


def _unmake(session: Session, job: Job, stage: Stage, now: int) -> None:
    """Lets a stage that has succeeded run again, as if it never had."""
    session.execute(delete(Artifact).where(Artifact.stage_id == stage.id))
    stage.status = move(stage.status, StageStatus.WAITING)
    stage.reused_from = stage.finished_at = stage.step = stage.total = stage.resumed_step = stage.saved_step = None
    data = {"stage": stage.name, "outcome": "damaged"}
    add_event(session, job, now, "warn", f"Stage {stage.name}: what it made is damaged; it is made again.", data)


def _said(job: Job, stage: Stage, sha256: str, again: list[Stage]) -> str:
    if again:
        return f"What {' and '.join(maker.name for maker in again)} made is damaged in the store."
    for source in stage.inputs.values():
        for path, content, _ in job.sources.get(source, ()):
            if content == sha256:
                return (
                    f"{path} of its {source.replace('_', ' ')} cannot be read back from the store. Upload the file or "
                    "add the model again, which heals it, then retry the job."
                )
    return f"The content {sha256} cannot be read back from the store."
