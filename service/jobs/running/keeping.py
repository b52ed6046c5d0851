"""Which of a running stage's checkpoints are in the store: what it goes on from on another host.

The newest is named once all of it is there, and the one before it is named still, in case that the newest is damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs import repository
from service.jobs.data.sparing import BACKUP
from service.jobs.ids import new_id
from service.jobs.lifecycle import StageStatus
from service.jobs.progression import InputFiles
from service.jobs.repository import kept
from service.jobs.tables import KeptCheckpoint, Stage

KEPT = 2
"""Checkpoints of a stage: the newest, and the one before."""


@dataclass(frozen=True)
class Kept:
    """A checkpoint in the store: the stage's own count of what is done, and each file as (path, sha256, bytes)."""

    step: int
    files: InputFiles


def of_work(session: Session, work: str) -> tuple[Kept, ...]:
    """Those from which this work can go on, the furthest first."""
    return tuple(Kept(row.step, tuple(map(tuple, row.files))) for row in kept.of_work(session, work))


def keep(database: Database, stage_id: str, epoch: int, work: str, checkpoint: Kept) -> set[str] | None:
    """Names a checkpoint that is whole in the store, and lets go of those that are older than the one before it.

    One that is further than all that were kept before is progress, though an earlier attempt had got further: what that
    one left may have gone with its host. Attempts are counted anew.

    The contents that nothing needs any more, for whoever calls to remove: none while a backup is being made, which may
    be about to copy them; the sweep finds them later. None, and nothing done, where the stage is no longer the
    caller's.
    """
    with database.transaction() as session:
        if not repository.guarded_update(session, stage_id, epoch, [StageStatus.RUNNING], epoch=Stage.epoch):
            return None
        row = KeptCheckpoint(id=new_id("kept"), stage_id=stage_id, epoch=epoch, work=work, created_at=database.now())
        row.step, row.files = checkpoint.step, [list(file) for file in checkpoint.files]
        before = kept.of_stage(session, stage_id)
        again = [other for other in before if (other.epoch, other.step) == (epoch, checkpoint.step)]
        older = [other for other in before if other not in again][KEPT - 1 :]
        _forget(session, [*again, *older])
        session.add(row)
        session.flush()
        if all(other.step < checkpoint.step for other in before):
            repository.guarded_update(session, stage_id, epoch, [StageStatus.RUNNING], fruitless=0)
        return _unheld(session, {sha256 for other in (*again, *older) for _, sha256, _ in other.files})


def unheld(database: Database, contents: set[str]) -> set[str]:
    """Those of a stage's checkpoints that nothing needs once it has ended, for whoever calls to remove; as above."""
    with database.transaction() as session:
        return _unheld(session, contents)


def _unheld(session: Session, contents: set[str]) -> set[str]:
    return set() if repository.share_lease(session, BACKUP).holder else kept.unheld(session, contents)


def _forget(session: Session, rows: Sequence[KeptCheckpoint]) -> None:
    for row in rows:
        session.delete(row)
    session.flush()
