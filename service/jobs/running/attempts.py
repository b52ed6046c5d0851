"""What a worker does with a stage: claim, beat, record, and end it one way or another. One verb, one transaction.

Every verb carries the epoch that the claim gave. A worker that lost its stage holds an older one, and changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import case, func
from sqlalchemy.orm import Session

from allo_engine.pipeline import stage_codes
from allo_engine.rounds import kind_of
from service.db import Database
from service.jobs import repository
from service.jobs.clean import clean_json, clean_text
from service.jobs.lifecycle import MAX_ATTEMPTS, JobStatus, StageStatus, another_attempt, move
from service.jobs.presence import asks_apart
from service.jobs.progression import (
    InputFiles,
    Level,
    add_artifacts,
    add_event,
    advance,
    complete,
    end,
    name_result,
    settle,
    stopping,
)
from service.jobs.repository.kept import drop as drop_kept
from service.jobs.running import keeping
from service.jobs.running.keeping import Kept
from service.jobs.tables import Job, Stage
from service.storage.store import Store

_TOLD = 20
"""Attempts of a stage that are told of, the latest."""

NOWHERE: Mapping[str, Any] = {"worker": None, "devices": None}
"""Where a stage is that waits to be placed."""


@dataclass(frozen=True)
class Claim:
    """A stage that is this worker's alone, until its lease is lost. `epoch` goes with every later verb.

    `devices` are those that it may see; None on a worker that has none. `work` is the name of its resume checkpoints:
    the owner's own, or who goes on from another's would know of them; what is computed anew goes on from none that were
    there before. `kept` are those in the store, the furthest first.
    """

    stage_id: str
    job_id: str
    owner: str
    name: str
    epoch: int
    attempt: int
    config: dict[str, Any]
    digest: str
    inputs: dict[str, InputFiles]
    devices: tuple[str, ...] | None
    work: str
    kept: tuple[Kept, ...] = ()

    @property
    def kind(self) -> str:
        """What is run, whatever the round."""
        return kind_of(self.name)


@dataclass(frozen=True)
class Beat:
    """The answer to a heartbeat: `alive` False means that the stage is no longer this worker's; `pause` that it should
    stop at a checkpoint and be given back; `over` that it should stop there because the job's time is over."""

    alive: bool
    cancel: bool
    pause: bool = False
    over: bool = False


def claim(database: Database, stage_id: str, epoch: int, worker: str) -> Claim | None:
    """Makes the stage the worker's. None where it was given to another worker, was planned by other code than this
    process runs, or the message is an old one."""
    with database.transaction() as session:
        now = database.now()
        job = repository.lock_job_of(session, stage_id)
        stage = None if job is None or stopping(job) else _claimed(session, stage_id, epoch, worker, now)
        if job is None or stage is None:
            return None
        if job.status is JobStatus.QUEUED:
            job.status = move(job.status, JobStatus.RUNNING)
        data = {"stage": stage.name, "attempt": stage.attempt}
        add_event(session, job, now, "info", f"Stage {stage.name}: started, attempt {stage.attempt}.", data)
        files = name_result(session, job, stage)
        assert stage.digest is not None
        devices = None if stage.devices is None else tuple(stage.devices)
        name = (stage_id, job.id, job.owner, stage.name, stage.epoch, stage.attempt)
        work = _work(job.owner, stage)
        return Claim(*name, stage.config, stage.digest, files, devices, work, keeping.of_work(session, work))


def heartbeat(
    database: Database,
    stage_id: str,
    epoch: int,
    step: int | None = None,
    total: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    saved: int | None = None,
    ran: float = 0.0,
) -> Beat:
    """A sign of life, with how far the stage is, behind which step it left its last checkpoint, and the seconds since
    the last sign. Brings back whether it should stop, and how.

    A checkpoint that is further than every one before, on whatever worker, is progress: attempts are counted anew.
    """
    with database.transaction() as session:
        progress: dict[str, Any] = {"beat": Stage.beat + 1, "ran_seconds": Stage.ran_seconds + ran}
        if step is not None:
            progress |= {"step": step, "total": total, "resumed_step": func.coalesce(Stage.resumed_step, step)}
        if metrics:
            progress["metrics"] = clean_json(metrics)
        if saved is not None:
            further = func.coalesce(Stage.saved_step, -1) < saved
            progress["saved_step"] = case((further, saved), else_=Stage.saved_step)
            progress["fruitless"] = case((further, 0), else_=Stage.fruitless)
        alive = repository.guarded_update(session, stage_id, epoch, [StageStatus.RUNNING], **progress)
        return Beat(True, *repository.wishes(session, stage_id)) if alive else Beat(False, cancel=True)


def record_message(
    database: Database,
    stage_id: str,
    epoch: int,
    level: Level,
    message: str,
    data: Mapping[str, Any] | None = None,
    type: Literal["message", "metrics"] = "message",
) -> bool:
    """Writes an event of the stage."""
    with database.transaction() as session:
        job = repository.lock_job_of(session, stage_id)
        stage = repository.stage(session, stage_id)
        if job is None or stage is None or stage.epoch != epoch or stage.status is not StageStatus.RUNNING:
            return False
        add_event(session, job, database.now(), level, message, {"stage": stage.name, **(data or {})}, type)
        return True


@asks_apart
def finish(
    database: Database,
    store: Store,
    stage_id: str,
    epoch: int,
    artifacts: Sequence[tuple[str, str, str, int]],
    metrics: Mapping[str, Any],
) -> bool:
    """Commits the stage's result, each artifact an (output, path, sha256, bytes) that the store already holds, and
    readies what waited for it. The last stage ends the job."""
    with database.transaction() as session:
        now = database.now()
        values = {"finished_at": now, "metrics": clean_json(metrics)}
        found = _leave(session, stage_id, epoch, StageStatus.SUCCEEDED, _ended("succeeded", now), **values)
        if found is None:
            return False
        job, stage = found
        stage.step = stage.total
        add_artifacts(session, stage, artifacts, now)
        complete(session, job, stage, now, f"Stage {stage.name}: succeeded.")
        advance(session, store, job, now)
        return True


def fail(database: Database, stage_id: str, epoch: int, code: str, message: str, retry: bool) -> bool:
    """Ends an attempt that went wrong. With `retry` the stage gets another one while attempts are left; else the job
    has failed, and what else of it runs is told to stop."""
    with database.transaction() as session:
        return _end_attempt(session, stage_id, epoch, code, message, retry, database.now())


def expire(database: Database, stage_id: str, epoch: int, beat: int) -> bool:
    """Takes the stage from a worker that gave no sign of life: one whose beat is still `beat`."""
    with database.transaction() as session:
        repository.lock_job_of(session, stage_id)
        stage = repository.stage(session, stage_id)
        if stage is None or stage.beat != beat:
            return False
        return _lost(session, stage_id, epoch, "The worker gave no sign of life.", database.now())


def bereave(database: Database, stage_id: str, epoch: int) -> bool:
    """Takes the stage from a process that is known to be dead."""
    with database.transaction() as session:
        return _lost(session, stage_id, epoch, "The worker's process was killed.", database.now())


def release(database: Database, stage_id: str, epoch: int) -> bool:
    """Gives the stage back uncounted: a worker that drains, or was told that the job is paused, has checkpointed it."""
    with database.transaction() as session:
        now, attempt = database.now(), Stage.attempt - 1
        job = repository.lock_job_of(session, stage_id)
        if job is None:
            return False
        if stopping(job):
            return _confirm(session, stage_id, epoch, now)
        again = _again_as(job)
        reason = _ended("paused" if again is StageStatus.WAITING else "given_back", now)
        found = _leave(session, stage_id, epoch, again, reason, attempt=attempt, **NOWHERE)
        if found is None:
            return False
        job, stage = found
        why = "paused" if stage.status is StageStatus.WAITING else "given back by its worker"
        data = {"stage": stage.name, "outcome": "given_back"}
        add_event(session, job, now, "info", f"Stage {stage.name}: {why}.", data)
        return True


def confirm_cancelled(database: Database, stage_id: str, epoch: int) -> bool:
    """The stage's processes have ended because its job is to stop."""
    with database.transaction() as session:
        return _confirm(session, stage_id, epoch, database.now())


def _work(owner: str, stage: Stage) -> str:
    anew = f"\0{stage.id}\0{stage.anew}" if stage.anew else ""
    return hashlib.sha256(f"{owner}\0{stage.digest}{anew}".encode()).hexdigest()


def _again_as(job: Job) -> StageStatus:
    """What a stage becomes that is to run again: of a paused job it waits for the job."""
    return StageStatus.WAITING if job.status is JobStatus.PAUSED else StageStatus.READY


def _claimed(session: Session, stage_id: str, epoch: int, worker: str, now: int) -> Stage | None:
    """The compare-and-set: of all who try, one. Each code is one stage's alone."""
    values: dict[str, Any] = {
        "epoch": Stage.epoch + 1,
        "attempt": Stage.attempt + 1,
        "resumed_step": None,
        "error": None,
    }
    values |= {"claimed_at": now, "started_at": func.coalesce(Stage.started_at, now)}
    return repository.take_stage(session, stage_id, epoch, worker, stage_codes(), **values)


def _ended(reason: str, now: int, message: str | None = None) -> dict[str, Any]:
    """How an attempt ended, as it is told."""
    return {"reason": reason, "message": message, "ended_at": now}


def _leave(
    session: Session, stage_id: str, epoch: int, target: StageStatus, ended: Mapping[str, Any], **values: Any
) -> tuple[Job, Stage] | None:
    """Moves a running stage on, behind the fence, and notes how its attempt ended. None where it is no longer the
    caller's."""
    job = repository.lock_job_of(session, stage_id)
    if job is None:
        return None
    stage = _stage(session, stage_id)
    attempt = {"attempt": stage.attempt, "worker": stage.worker, "began_at": stage.claimed_at, **ended}
    values |= {"status": target, "attempts": [*(stage.attempts or ()), attempt][-_TOLD:]}
    if not repository.guarded_update(session, stage_id, epoch, [StageStatus.RUNNING], **values):
        return None
    if target in (StageStatus.SUCCEEDED, StageStatus.CANCELLED):
        drop_kept(session, [stage_id])
    return job, _stage(session, stage_id)


def _stage(session: Session, stage_id: str) -> Stage:
    stage = repository.stage(session, stage_id)
    assert stage is not None
    return stage


def _confirm(session: Session, stage_id: str, epoch: int, now: int) -> bool:
    found = _leave(session, stage_id, epoch, StageStatus.CANCELLED, _ended("cancelled", now), finished_at=now)
    if found is None:
        return False
    job, stage = found
    data = {"stage": stage.name, "outcome": "stopped"}
    add_event(session, job, now, "info", f"Stage {stage.name}: stopped.", data)
    settle(session, job, now)
    return True


def _lost(session: Session, stage_id: str, epoch: int, message: str, now: int) -> bool:
    return _end_attempt(session, stage_id, epoch, "worker_lost", message, True, now)


def _end_attempt(session: Session, stage_id: str, epoch: int, code: str, message: str, retry: bool, now: int) -> bool:
    job = repository.lock_job_of(session, stage_id)
    if job is None:
        return False
    if stopping(job):
        return _confirm(session, stage_id, epoch, now)
    again = retry and another_attempt(_stage(session, stage_id).fruitless + 1)
    error = {"code": code, "message": clean_text(message)}
    target = _again_as(job) if again else StageStatus.FAILED
    placed = NOWHERE if again else {}
    values = {"error": error, "finished_at": None if again else now, "fruitless": Stage.fruitless + 1, **placed}
    found = _leave(session, stage_id, epoch, target, _ended(code, now, error["message"]), **values)
    if found is None:
        return False
    job, stage = found
    data = {"stage": stage.name, "attempt": stage.attempt, "code": code}
    if again:
        where = "from its start" if stage.saved_step is None else "from its last checkpoint"
        told = f"Stage {stage.name}: attempt {stage.attempt} ended; another one goes on {where}. {message}"
        add_event(session, job, now, "warn", told, data)
    else:
        tried = f" {MAX_ATTEMPTS} attempts ended with no progress between them, and there is no other." if retry else ""
        job.error = {**error, "param": None, "stage": stage.name}
        end(session, job, JobStatus.FAILED, now, "error", f"Stage {stage.name} failed.{tried} {message}")
    return True
