"""One stage from claim to commit: claim → inputs → engine → artifacts → finish. No Celery in here.

The database decides who owns the stage; the epoch of the claim goes with every write, and a write that finds another
epoch changes nothing. So the runner may be doubled, frozen or killed at any line of this file.
"""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.exc import SQLAlchemyError

from allo_engine import source
from allo_engine.full import disk_is_full
from service.db import Database
from service.jobs.data.scrubbing import quarantine
from service.jobs.running import attempts, dispatch, losses
from service.jobs.running.attempts import Claim
from service.logs import bound
from service.settings import Settings
from service.storage.store import Store, StoreAway, StoreError
from worker.claims import held
from worker.curves import store_curves
from worker.devices import visible
from worker.engine import DEFAULT_COMMAND, Engine
from worker.heart import Event, Heart
from worker.keeping import Keeper
from worker.memory import oom_kills
from worker.offer import worker_id
from worker.outcome import (
    OVER,
    Abandoned,
    Cancelled,
    Ending,
    Failed,
    Interrupt,
    NoRoom,
    Outcome,
    Released,
    Succeeded,
    Unreadable,
    broken,
    interrupted,
    judge,
)
from worker.pace import SILENCE, Pace
from worker.patience import patient
from worker.room import wait_for_room, wanted_bytes
from worker.starting import Start, start_cold
from worker.sweep import sweep
from worker.traffic import traffic
from worker.turns import training
from worker.workspace import Workspace, open_workspace

log = logging.getLogger(__name__)

_STOPS_AT = 0.75
"""The share of the self-fence after which a stage whose database is out of reach is stopped: the rest is for its
checkpoint, before its supervisor ends it."""

_STACK_SECONDS = 1.0
"""For a stalled engine to write down where it stands."""

_LET_GO_SECONDS = 5.0
"""Behind its drain, a model that answered here is gone by then, unless something is wrong with it."""

LAST_SECONDS = 2.0
"""For the checkpoint of a stage that is given back to be in the store, too: whoever takes its device waits for it."""

_DAMAGED = "The checkpoint behind step {} that was kept in the store is damaged or missing: the one before is tried."

Artifacts = Sequence[tuple[str, str, str, int]]


@dataclass(frozen=True)
class Runner:
    """Runs stages, one at a time. `draining` turns true when this worker is to give its stage back and end; `start`
    brings a stage's supervisor to life; `replaced` says that the engine's files are no longer those that this worker
    knows: it takes no stage, for what it would start is other code."""

    settings: Settings
    database: Database
    store: Store
    draining: Callable[[], bool] = lambda: False
    start: Start = start_cold
    replaced: Callable[[], bool] = source.replaced

    def run(self, stage_id: str, epoch: int) -> Outcome | None:
        """Run the stage, if it is this worker's to be had at this epoch; None where the ring was doubled, late or made
        up."""
        if self.replaced():
            log.warning("code_replaced stage_id=%s epoch=%s", stage_id, epoch)
            return None
        with held(self.settings.data_dir, stage_id, epoch + 1):
            claim = attempts.claim(self.database, stage_id, epoch, worker_id(self.settings))
            if claim is None:
                log.info("ring_ignored stage_id=%s epoch=%s", stage_id, epoch)
                return None
            with bound(job_id=claim.job_id, owner=claim.owner):
                return self._run(claim)

    def _run(self, claim: Claim) -> Outcome:
        try:
            return self._end_to_end(claim)
        except Exception as error:  # of whatever kind: the attempt ends now and with its reason, not with its lease
            log.exception("attempt_broke stage_id=%s epoch=%s", claim.stage_id, claim.epoch)
            told = broken(f"{type(error).__name__}: {error}")
            outcome = _failed_on_disk(error) if isinstance(error, OSError) else told
            if isinstance(outcome, NoRoom):
                time.sleep(self.settings.lease_seconds / 4)  # it would come back at once, and find no more room
            self._commit(claim, outcome, (), {})
            return outcome

    def _end_to_end(self, claim: Claim) -> Outcome:
        stage_id = claim.stage_id
        log.info("stage_claimed stage_id=%s epoch=%s name=%s", stage_id, claim.epoch, claim.name)
        sweep(stage_id)
        with open_workspace(self.settings.data_dir, stage_id, claim.epoch, claim.work) as workspace:
            began, resumed = time.monotonic(), workspace.resumes() or bool(claim.kept)
            with Heart(self.database, claim, self._every, _STOPS_AT * self.settings.self_fence_seconds) as heart:
                keep_seconds = self.settings.keep_seconds
                keeper = Keeper(self.database, self.store, claim, workspace, keep_seconds, heart.warn_once)
                outcome, artifacts = self._attempt(claim, workspace, heart, keeper)
                if isinstance(outcome, NoRoom):
                    outcome = self._given_room(claim, heart)
            if heart.interrupt is Interrupt.FENCED:  # told by its last beat at the latest: what came of it is nobody's
                outcome = Abandoned()
            took = {"seconds": round(time.monotonic() - began, 3), "resumed": resumed}
            committed = self._commit(claim, outcome, artifacts, took)
            if isinstance(outcome, Succeeded | Cancelled) and committed:
                workspace.forget_work()
            if isinstance(outcome, Succeeded) and committed:
                keeper.forget()
        log.info("stage_ended stage_id=%s epoch=%s outcome=%r", stage_id, claim.epoch, outcome)
        return outcome

    def _attempt(self, claim: Claim, workspace: Workspace, heart: Heart, keeper: Keeper) -> tuple[Outcome, Artifacts]:
        """Everything between claim and commit; an attempt that cannot go on becomes an outcome here."""
        try:
            with training(self.settings.data_dir, self.settings.drain_seconds + _LET_GO_SECONDS):
                outcome = self._prepare(claim, workspace, heart) or self._train(claim, workspace, heart, keeper)
            if not isinstance(outcome, Succeeded):
                return outcome, ()
            store = self._patient(claim, heart)
            artifacts = workspace.publish(store, proceed=lambda: heart.interrupt is None)
            if heart.told():
                artifacts += store_curves(self.database, store, claim)
            return (interrupted(heart.interrupt) if heart.interrupt else outcome), artifacts
        except StoreAway:  # for longer than this worker may wait
            return (interrupted(heart.interrupt) if heart.interrupt else Released()), ()
        except StoreError as error:
            with suppress(SQLAlchemyError):  # it is set aside all the same
                quarantine(self.database, self.store, error.sha256)
            return Unreadable(error.sha256), ()
        except OSError as error:
            return _failed_on_disk(error), ()

    def _prepare(self, claim: Claim, workspace: Workspace, heart: Heart) -> Outcome | None:
        """Put the inputs in place; an outcome only where that was interrupted."""
        for _ in workspace.materialise(self._patient(claim, heart), claim.kind, claim.config, claim.inputs):
            if heart.interrupt:
                return interrupted(heart.interrupt)
            if heart.over:
                return OVER
            if self._gives_back(heart):
                return Released()
        return self._resume(claim, workspace, heart)

    def _resume(self, claim: Claim, workspace: Workspace, heart: Heart) -> Outcome | None:
        """Take up the furthest whole checkpoint of the store, where it is further than what is here."""
        further = [checkpoint for checkpoint in claim.kept if checkpoint.step > workspace.reached]
        for checkpoint in further:
            try:
                for _ in workspace.take_up(self.store, checkpoint):
                    if heart.interrupt:
                        return interrupted(heart.interrupt)
                    if self._gives_back(heart):
                        return Released()
            except StoreError as error:
                log.warning(
                    "kept_checkpoint_damaged stage_id=%s step=%s error=%r", claim.stage_id, checkpoint.step, error
                )
                heart.tell(Event("warn", _DAMAGED.format(checkpoint.step), {"step": checkpoint.step}))
            else:
                message = f"Goes on from the checkpoint behind step {checkpoint.step}, which was kept in the store."
                heart.tell(Event("info", message, {"step": checkpoint.step}))
                return None
        if further:
            where = "from what is left on this worker" if workspace.resumes() else "at its start"
            heart.tell(Event("warn", f"No checkpoint of the store is whole: the stage begins {where}.", {}))
        return None

    def _patient(self, claim: Claim, heart: Heart) -> Store:
        """The store, waited for while it is away, for as long as the stage is ours and is to go on."""

        def wait(error: StoreAway) -> None:
            if heart.warn_once("The artifact store does not answer: the stage waits for it."):
                log.warning("store_away stage_id=%s error=%s", claim.stage_id, error)
            if heart.interrupt or self._gives_back(heart):
                raise error
            time.sleep(self._every)

        return patient(self.store, wait)

    def _train(self, claim: Claim, workspace: Workspace, heart: Heart, keeper: Keeper) -> Outcome:
        grace, lease = self.settings.grace_seconds, self.settings.self_fence_seconds
        last, stopped, killed_before = None, False, oom_kills()
        pace = Pace(self._patience(claim.kind), time.monotonic(), partial(traffic, claim.stage_id))
        command = shlex.split(self.settings.engine) or DEFAULT_COMMAND
        seen = visible(claim.devices)
        with keeper, Engine(self.start, command, claim.stage_id, claim.kind, workspace, grace, lease, seen) as engine:
            heart.renewed = engine.beat
            for line in engine.lines():
                if line is not None:
                    last = _note(line, heart, keeper) or last
                    pace.moved(time.monotonic())
                elif heart.interrupt:
                    engine.kill()
                elif (self._gives_back(heart) or heart.over) and not stopped:
                    engine.beat()  # it is to have the time for a checkpoint
                    engine.stop()
                    stopped = True
                elif not stopped and pace.stalls(time.monotonic()):
                    engine.stack()
                    time.sleep(_STACK_SECONDS)
                    engine.kill()
            status, tail = engine.status(), workspace.log_tail()
            starved = None if killed_before is None else oom_kills() != killed_before
            over = heart.over and not heart.paused
            outcome = judge(Ending(status, last, stopped, tail, starved, over, pace.stalled), heart.interrupt)
            if isinstance(outcome, Released) and not heart.unreachable:
                keeper.last(LAST_SECONDS)
        return outcome

    def _patience(self, kind: str) -> float:
        """For how long a stage of this kind may be silent, in seconds."""
        return (self.settings.stall_seconds or math.inf) * SILENCE.get(kind, 1)

    def _gives_back(self, heart: Heart) -> bool:
        """Whether the stage is to go on later, here or elsewhere: this worker drains, the job is paused, or the
        database is out of reach."""
        return self.draining() or heart.paused or heart.unreachable

    def _given_room(self, claim: Claim, heart: Heart) -> Outcome:
        """Wait for room, here or on another worker; what becomes of the attempt then."""
        wanted, pause = wanted_bytes(self._folders), 3 * self.settings.lease_seconds

        def ended() -> Outcome | None:
            if heart.interrupt:
                return interrupted(heart.interrupt)
            if heart.over or self._gives_back(heart):
                return OVER if heart.over else Released()
            return NoRoom() if self._elsewhere(claim, wanted) else None

        return wait_for_room(self._folders, pause, heart.warn_once, ended) or Released()

    def _elsewhere(self, claim: Claim, room: int) -> bool:
        """Whether another worker could go on with the stage at once."""
        with suppress(SQLAlchemyError):
            return dispatch.elsewhere(self.database, claim.stage_id, room)
        return False

    @property
    def _folders(self) -> tuple[Path, Path]:
        """Where this worker's stages write."""
        return self.settings.data_dir, self.store.scratch

    def _commit(self, claim: Claim, outcome: Outcome, artifacts: Artifacts, took: Mapping[str, Any]) -> bool:
        """Write the outcome and what it took, trying again while the database, or the store that its next stage looks
        into, is away; a worker that drains, for no longer than a lease. Without them it has nothing else to do, and
        where the lease was lost, the write finds out."""
        end = time.monotonic() + self.settings.lease_seconds
        while True:
            try:
                return self._write(claim, outcome, artifacts, took)
            except (SQLAlchemyError, StoreAway) as error:
                log.warning("commit_failed stage_id=%s epoch=%s error=%r", claim.stage_id, claim.epoch, error)
                if self.draining() and time.monotonic() >= end:
                    return False
                time.sleep(self._every)

    def _write(self, claim: Claim, outcome: Outcome, artifacts: Artifacts, took: Mapping[str, Any]) -> bool:
        name = (claim.stage_id, claim.epoch)
        match outcome:
            case Succeeded(metrics):
                return attempts.finish(self.database, self.store, *name, artifacts, {**metrics, **took})
            case Failed(code, message, retry):
                return attempts.fail(self.database, *name, code, message, retry)
            case Unreadable(sha256):
                return losses.lose(self.database, self.store, *name, sha256)
            case Released():
                return attempts.release(self.database, *name)
            case NoRoom():
                return dispatch.hand_over(self.database, *name, wanted_bytes(self._folders))
            case Cancelled():
                return attempts.confirm_cancelled(self.database, *name)
            case Abandoned():
                return False

    @property
    def _every(self) -> float:
        return self.settings.heartbeat_seconds


def _note(line: Mapping[str, Any], heart: Heart, keeper: Keeper) -> Mapping[str, Any] | None:
    """Pass on what the engine said; the line itself where it is one that ends the stage."""
    match line:
        case {"type": "progress", "step": int(step), "total": int(total)}:
            heart.advance(step, total, _object(line, "metrics", heart))
        case {"type": "message", "message": str(message)}:
            level: Literal["info", "warn"] = "warn" if line.get("level") == "warn" else "info"
            heart.tell(Event(level, message, _object(line, "data", heart)))
        case {"type": "checkpoint", "step": int(step)}:
            heart.saved(step)
            keeper.saw(step)
        case {"type": "result"}:
            return {**line, "metrics": _object(line, "metrics", heart)}
        case {"type": "error"}:
            return line
        case {"type": str(kind)}:
            heart.warn_once(f"The engine said something that is not understood: a line of type {kind:.50}.")
    return None


def _object(line: Mapping[str, Any], field: str, heart: Heart) -> Mapping[str, Any]:
    """What a line has in a field that should be an object; empty where it is not one, which is told once."""
    value = line.get(field)
    if value is None or isinstance(value, dict):
        return value or {}
    heart.warn_once(f"The engine said something that is not understood: {field} is no object.")
    return {}


def _failed_on_disk(error: OSError) -> NoRoom | Failed:
    if disk_is_full(error):
        return NoRoom()
    return Failed("worker_io", f"The worker could not read or write its files: {error}.", retry=True)
