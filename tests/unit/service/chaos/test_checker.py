"""Each rule goes red for a history that breaks it, and for no other."""

from __future__ import annotations

from typing import Any

import pytest

from service.chaos.checker import violations

JOB = "ftjob-1"


def line(who: str, did: str, **what: Any) -> dict[str, Any]:
    return {"at": 0.0, "who": who, "did": did, **what}


def event(seq: int, message: str) -> dict[str, Any]:
    return line("database", "event", job=JOB, seq=seq, message=message)


SUBMIT = line("visitor", "submit", key="k", job=JOB, status=200)
UNHEARD = line("visitor", "submit", key="k", status=None)
ENDED = line("database", "job", job=JOB, status="succeeded", error=None)
EVENTS = [event(1, "Created."), event(2, "Stage sft: succeeded."), event(3, "Stage evaluate: succeeded.")]
ARTIFACT = line("store", "artifact", job=JOB, sha256="0" * 64, verified=True)
FILE = line("store", "file", file="file-1", sha256="0" * 64, verified=True)
READ = line("visitor", "download", name="weights", status=200, verified=True)
NOT_READ = line("visitor", "download", name="weights", status=None, verified=False)

WELL = [UNHEARD, SUBMIT, *EVENTS, ENDED, ARTIFACT, FILE, READ, NOT_READ]


def test_a_history_in_which_all_went_well_breaks_no_rule() -> None:
    assert violations(WELL) == []


def test_a_job_that_was_cancelled_may_end_so_and_one_that_is_refused_may_succeed() -> None:
    cancelled = line("visitor", "cancel", job=JOB, status=200)
    refused = line("visitor", "cancel", job=JOB, status=400)
    assert violations([SUBMIT, cancelled, {**ENDED, "status": "cancelled"}]) == []
    assert violations([*WELL, refused]) == []


@pytest.mark.parametrize(
    ("history", "broken"),
    [
        ([SUBMIT], "was accepted and is lost"),
        ([SUBMIT, {**ENDED, "status": "failed"}], "is failed"),
        ([*WELL, event(4, "Stage sft: succeeded.")], "was committed 2 times"),
        ([ENDED, event(1, "Created."), event(3, "Stage sft: started, attempt 1.")], "have a gap"),
        ([*WELL, {**SUBMIT, "job": "ftjob-2"}, {**ENDED, "job": "ftjob-2"}], "one key made 2 jobs"),
        ([*WELL, line("visitor", "cancel", job=JOB, status=200)], "succeeded after its cancel was acknowledged"),
        ([*WELL, line("visitor", "pause", job=JOB, status=500)], "pause was answered with 500"),
        ([*WELL, {**ARTIFACT, "verified": False}], "does not verify"),
        ([*WELL, {**FILE, "verified": False}], "was accepted and is lost"),
        ([*WELL, {**READ, "verified": False}], "was served with other bytes"),
        ([*WELL, line("system", "orphan", pid=1, command="trainer")], "outlived its stage"),
        ([*WELL, line("system", "unfinished", job=JOB, status="running")], "did not end"),
    ],
)
def test_a_history_that_breaks_a_rule_says_which(history: list[dict[str, Any]], broken: str) -> None:
    (found,) = violations(history)
    assert broken in found
