"""What becomes of what was under way in a system from whose backup this database was restored."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.lifecycle import JobStatus, StageStatus
from service.jobs.presence import asks_apart
from service.jobs.progression import add_event, advance, hold_unstarted, stopping
from service.jobs.repository import restored
from service.jobs.running import attempts
from service.jobs.tables import Damage, Job
from service.storage.store import Store

_LEAP = 1_000_000
"""More claims than any stage sees: a worker of the old system that is still at work holds an epoch below all that are
given from now on, also where it claimed after the backup."""


@asks_apart
def begin_anew(database: Database, store: Store, made_at: str, lacking: Sequence[str]) -> int:
    """Voids every claim, lease and registration; gives back, uncounted, what was running, so that it goes on from its
    kept checkpoint. What is lacking of the contents is noted as damaged. How many jobs go on."""
    with database.transaction() as session:
        restored.forget_workers(session)
        restored.leap(session, _LEAP)
        restored.drop_kept(session, set(lacking))
        for sha256 in lacking:
            session.merge(Damage(id=sha256, bytes=0, found_at=database.now()))
        jobs = restored.unended_jobs(session)
        for job in jobs:
            said = (
                f"The service was restored from its backup of {made_at}: the job goes on from what was stored by then."
            )
            add_event(session, job, database.now(), "warn", said, {"restored": made_at})
            _give_back(database, session, store, job)
        return len(jobs)


def _give_back(database: Database, session: Session, store: Store, job: Job) -> None:
    hold_unstarted(session, job)
    for stage in repository.stages(session, [job.id]):
        if stage.status is StageStatus.RUNNING:
            attempts.release(database, stage.id, stage.epoch)
    if job.status is not JobStatus.PAUSED and not stopping(job):
        advance(session, store, job, database.now())
