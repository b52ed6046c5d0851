"""How far and how long, worked by hand."""

from __future__ import annotations

from typing import Any

from service.jobs.estimates import fraction, job_eta, job_fraction, stage_eta
from service.jobs.lifecycle import StageStatus
from service.jobs.tables import Stage


def stage(name: str = "sft", status: StageStatus = StageStatus.RUNNING, **values: Any) -> Stage:
    return Stage(name=name, status=status, **{"step": None, "total": None, "claimed_at": None, **values})


def test_the_pace_so_far_gives_the_time_left() -> None:
    assert stage_eta(stage(step=10, total=40, claimed_at=100), now=120) == 60  # 2 s a step, 30 left


def test_a_resumed_attempt_counts_its_own_steps_alone() -> None:
    assert stage_eta(stage(step=30, total=40, resumed_step=20, claimed_at=100), now=120) == 20


def test_nothing_is_said_before_there_is_a_pace() -> None:
    assert stage_eta(stage(), now=5) is None
    assert stage_eta(stage(step=0, total=9, claimed_at=1), now=5) is None
    assert stage_eta(stage(step=20, total=40, resumed_step=20, claimed_at=1), now=5) is None
    assert stage_eta(stage(status=StageStatus.READY), now=5) is None


def test_a_jobs_time_is_the_sum_of_what_is_left_and_known() -> None:
    done, runs = stage("sft", StageStatus.SUCCEEDED), stage("warmup", step=10, total=40, claimed_at=100)
    waits = stage("evaluate", StageStatus.WAITING)
    assert job_eta([done, runs, waits], {"evaluate": 7}, now=120) == 67
    assert job_eta([done, runs, waits], {}, now=120) is None
    assert job_eta([done], {}, now=120) is None


def test_fractions() -> None:
    parts = [stage(status=StageStatus.SUCCEEDED), stage(step=1, total=4), stage(status=StageStatus.WAITING)]
    assert [fraction(part) for part in parts] == [1.0, 0.25, 0.0]
    assert job_fraction(parts) == 1.25 / 3
