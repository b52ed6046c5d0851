"""Attempts and waits, as they are read from what was told."""

from __future__ import annotations

from typing import Any

from service.jobs.history import REUSED, Attempt, courses
from service.jobs.lifecycle import StageStatus
from service.jobs.tables import Event, Job, Stage


def told(at: int, **data: Any) -> Event:
    return Event(created_at=at, data=data)


def stage(name: str, status: StageStatus, **values: Any) -> Stage:
    inputs = {"model": "sft.checkpoint"} if name == "evaluate" else {"model": "model"}
    return Stage(name=name, status=status, inputs=inputs, **values)


JOB = Job(created_at=100)


def test_a_stage_waits_from_when_all_that_it_reads_is_there() -> None:
    stages = [
        stage("sft", StageStatus.SUCCEEDED, finished_at=160),
        stage("evaluate", StageStatus.RUNNING),
    ]
    events = [
        told(110, stage="sft", attempt=1),
        told(120, stage="sft", attempt=1, code="crashed"),
        told(125, stage="sft", attempt=2),
        told(130, stage="sft", note="a word of its own"),
        told(140, stage="sft", outcome="given_back"),
        told(150, stage="sft", attempt=2),
        told(160, stage="sft", metrics={}),
        told(170, stage="evaluate", attempt=1),
    ]
    found = courses(JOB, stages, events, 200)
    sft = (Attempt(110, 120, "crashed"), Attempt(125, 140, "given_back"), Attempt(150, 160, "succeeded"))
    assert found["sft"].attempts == sft
    assert (found["sft"].ready_at, found["sft"].waited, found["sft"].ran) == (100, 25, 35)
    assert found["evaluate"].attempts == (Attempt(170),)
    assert (found["evaluate"].ready_at, found["evaluate"].waited, found["evaluate"].ran) == (160, 10, 30)


def test_what_has_not_begun_waits_once_it_could_run() -> None:
    stages = [stage("sft", StageStatus.READY), stage("evaluate", StageStatus.WAITING)]
    found = courses(JOB, stages, [], 130)
    assert (found["sft"].waited, found["sft"].ran) == (30, None)
    assert (found["evaluate"].ready_at, found["evaluate"].waited) == (None, None)


def test_the_last_attempt_of_a_failed_stage_ends_with_the_stage() -> None:
    stages = [stage("sft", StageStatus.FAILED, finished_at=150, error={"code": "out_of_memory"})]
    found = courses(JOB, stages, [told(110, stage="sft", attempt=3)], 999)
    assert found["sft"].attempts == (Attempt(110, 150, "out_of_memory"),)
    assert (found["sft"].waited, found["sft"].ran) == (10, 40)


def test_a_reused_stage_neither_waited_nor_ran() -> None:
    stages = [stage("sft", StageStatus.SUCCEEDED, finished_at=100, reused_from="stage-x")]
    (course,) = courses(JOB, stages, [told(100, stage="sft", metrics={})], 200).values()
    assert (course.attempts, course.waited, course.ran) == ((Attempt(100, 100, REUSED),), 0, 0)


def test_events_that_name_no_stage_are_of_none() -> None:
    found = courses(
        JOB, [stage("sft", StageStatus.READY)], [told(1), told(2, status="failed"), told(3, metrics=1)], 130
    )
    assert found["sft"].attempts == ()
