"""The lifecycle by itself: what may follow what."""

from __future__ import annotations

import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.lifecycle import (
    JOB_ENDED,
    JOB_MOVES,
    STAGE_ENDED,
    STAGE_MOVES,
    IllegalMove,
    JobStatus,
    StageStatus,
    another_attempt,
    move,
    stage_sources,
)

JOBS, STAGES = st.sampled_from(JobStatus), st.sampled_from(StageStatus)


def test_every_status_has_its_moves() -> None:
    assert set(JOB_MOVES) == set(JobStatus)
    assert set(STAGE_MOVES) == set(StageStatus)


@given(STAGES, STAGES)
def test_a_move_is_legal_exactly_where_its_source_is_listed(current: StageStatus, target: StageStatus) -> None:
    if current in stage_sources(target):
        assert move(current, target) is target
    else:
        with pytest.raises(IllegalMove, match=f"{current} cannot become {target}"):
            move(current, target)


def test_a_stage_that_succeeded_stays_so_unless_it_begins_anew() -> None:
    assert STAGE_MOVES[StageStatus.SUCCEEDED] == {StageStatus.WAITING}


@given(st.lists(JOBS, max_size=30))
def test_a_job_that_ended_runs_only_after_it_was_queued_again(targets: list[JobStatus]) -> None:
    status, path = JobStatus.QUEUED, [JobStatus.QUEUED]
    for target in targets:
        if target in JOB_MOVES[status]:
            status = move(status, target)
            path.append(status)
    for before, after in pairwise(path):
        assert before not in JOB_ENDED or after is JobStatus.QUEUED


def test_every_status_can_reach_an_end() -> None:
    for moves, ended in ((JOB_MOVES, JOB_ENDED), (STAGE_MOVES, STAGE_ENDED)):
        reaching = set(ended)
        for _ in moves:
            reaching |= {status for status, targets in moves.items() if targets & reaching}
        assert reaching == set(moves)


def test_only_a_dispatched_stage_can_be_claimed() -> None:
    assert stage_sources(StageStatus.RUNNING) == (StageStatus.DISPATCHED,)


def test_there_are_three_attempts() -> None:
    assert [another_attempt(attempt) for attempt in (1, 2, 3, 4)] == [True, True, False, False]


def test_errors_survive_a_trip_between_processes() -> None:
    error = pickle.loads(pickle.dumps(IllegalMove("a", "b")))  # noqa: S301 - our own bytes
    assert (error.current, error.target) == ("a", "b")
