"""How far a job is and how long it will take: pure functions of its rows. What cannot be known is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.jobs.lifecycle import STAGE_ENDED, StageStatus
from service.jobs.tables import Stage


def fraction(stage: Stage) -> float:
    """The share of the stage's steps that is done, from 0 to 1."""
    if stage.status is StageStatus.SUCCEEDED:
        return 1.0
    return min(stage.step / stage.total, 1.0) if stage.step and stage.total else 0.0


def stage_eta(stage: Stage, now: int) -> int | None:
    """Seconds that a running stage still takes, at the pace of this attempt since it was claimed."""
    if stage.status is not StageStatus.RUNNING or not stage.total or stage.step is None or stage.claimed_at is None:
        return None
    done = stage.step - (stage.resumed_step or 0)
    if done <= 0:
        return None
    return round((now - stage.claimed_at) / done * max(stage.total - stage.step, 0))


def known_seconds(estimate: Mapping[str, Any] | None, earlier: Mapping[str, int]) -> Mapping[str, int]:
    """How long stages take, by their names: as they did before, else as was expected, as far as anything was."""
    expected = {name: one["seconds"] for name, one in (estimate or {}).items()}
    return {**{name: round(found["expected"]) for name, found in expected.items() if found}, **earlier}


def job_eta(stages: Sequence[Stage], earlier: Mapping[str, int], now: int) -> int | None:
    """Seconds until the last stage ends, one after another; None while a stage is left whose time nobody knows."""
    left = [stage for stage in stages if stage.status not in STAGE_ENDED]
    known = [stage_eta(stage, now) for stage in left]
    seconds = [earlier.get(stage.name) if eta is None else eta for stage, eta in zip(left, known, strict=True)]
    certain = [value for value in seconds if value is not None]
    return sum(certain) if left and len(certain) == len(left) else None


def job_fraction(stages: Sequence[Stage]) -> float:
    """The mean of the stages' shares."""
    return sum(map(fraction, stages)) / len(stages)
