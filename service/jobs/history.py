"""How a job's stages ran, from its rows and from what its events tell: attempts and waits. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from service.jobs.lifecycle import STAGE_ENDED, StageStatus
from service.jobs.progression import needs
from service.jobs.tables import Event, Job, Stage

REUSED = "reused"


@dataclass(frozen=True)
class Attempt:
    """One run of a stage. `outcome` is succeeded, given_back, stopped, cancelled, or what it failed of; None while it
    runs."""

    began: int
    ended: int | None = None
    outcome: str | None = None


@dataclass(frozen=True)
class Course:
    """A stage over time. `ready_at` is when all that it reads was there, None before that; `waited` and `ran` are
    seconds of all its waits for a worker and all its attempts up to now."""

    ready_at: int | None
    attempts: tuple[Attempt, ...]
    waited: int | None
    ran: int | None


def courses(job: Job, stages: Sequence[Stage], told: Iterable[Event], now: int) -> Mapping[str, Course]:
    """Each stage's course, by its name; `told` are the messages that tell of attempts, as they
    happened."""
    begun, ended = _attempts(told), {stage.name: stage.finished_at for stage in stages if _is_done(stage)}
    found = {}
    for stage in stages:
        before = [ended.get(name) for name in needs(stage)]
        ready = None if None in before else max((at for at in before if at is not None), default=job.created_at)
        found[stage.name] = _course(stage, ready, begun.get(stage.name, []), job.finished_at or now)
    return found


def _is_done(stage: Stage) -> bool:
    return stage.status is StageStatus.SUCCEEDED


def _attempts(told: Iterable[Event]) -> Mapping[str, list[Attempt]]:
    found = defaultdict[str, list[Attempt]](list)
    for event in told:
        name, begun = event.data.get("stage"), found[event.data.get("stage", "")]
        outcome = _outcome(event)
        if name is None:
            continue
        if outcome is not None:
            if begun and begun[-1].ended is None:
                begun[-1] = replace(begun[-1], ended=event.created_at, outcome=outcome)
        elif "attempt" in event.data:
            begun.append(Attempt(event.created_at))
    return found


def _outcome(event: Event) -> str | None:
    """How an attempt ended that this event tells the end of."""
    if "metrics" in event.data:
        return "succeeded"
    told = event.data.get("outcome") or event.data.get("code")
    return told if isinstance(told, str) else None


def _course(stage: Stage, ready: int | None, attempts: list[Attempt], until: int) -> Course:
    if stage.reused_from is not None and stage.finished_at is not None:
        return Course(ready, (Attempt(stage.finished_at, stage.finished_at, REUSED),), 0, 0)
    if attempts and attempts[-1].ended is None and stage.status is not StageStatus.RUNNING:
        outcome = (stage.error or {}).get("code") or stage.status.value  # the job's end told it
        attempts[-1] = replace(attempts[-1], ended=stage.finished_at or until, outcome=outcome)
    ran = sum((one.ended or until) - one.began for one in attempts) if attempts else None
    if ready is None:
        return Course(None, tuple(attempts), None, ran)
    over = attempts[-1].ended if stage.status in STAGE_ENDED and attempts else stage.finished_at or until
    return Course(ready, tuple(attempts), max((over or until) - ready - (ran or 0), 0), ran)
