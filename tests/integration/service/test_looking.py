"""What pages look for, on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.jobs import series, service
from service.jobs.access import sessions
from service.jobs.access.keys import create_key, revoke_key
from service.jobs.lifecycle import JobStatus
from service.jobs.repository import Page
from service.jobs.repository.looking import Wanted
from service.jobs.running import attempts
from tests.integration.service.domain import OWNER, SUPERVISED, Domain

WHOLE = Wanted(OWNER, JobStatus.RUNNING, "supervised", "tiny", "GR")


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Wanted(), 1),
        (WHOLE, 1),
        (replace(WHOLE, owner="stranger"), 0),
        (replace(WHOLE, status=JobStatus.PAUSED), 0),
        (replace(WHOLE, method="dpo"), 0),
        (Wanted(text="größer"), 1),
        (Wanted(text="e%"), 1),
        (Wanted(text="_"), 0),
    ],
)
def test_jobs_are_found_by_what_they_are(domain: Domain, wanted: Wanted, count: int) -> None:
    domain.submit(replace(SUPERVISED, suffix="Größe%", metadata={"a": "größer"}))
    domain.claim()
    lines, more = service.look_for(domain.database, wanted, Page(5))
    assert (len(lines), more) == (count, False)
    assert service.names_in_use(domain.database, None) == (["tiny"], [OWNER])


def test_curves_are_thinned_out_and_a_step_that_ran_again_counts_once(domain: Domain) -> None:
    job_id, claimed = domain.submit(SUPERVISED).job.id, domain.claim()
    for step, loss in ((1, 0.9), (2, 0.8), (3, 0.7), (2, 0.6), (3, 0.5)):
        told = (domain.database, claimed.stage_id, claimed.epoch, "info", "", {"step": step, "loss": loss})
        assert attempts.record_message(*told, type="metrics")
    found = [point for points in series.read_thinned(domain.database, OWNER, job_id, 2) for point in points]
    assert [(point.step, point.values["loss"]) for point in found] == [(1, 0.9), (3, 0.5)]


def test_sessions_are_found_forgotten_and_end_with_their_key(domain: Domain) -> None:
    key = create_key(domain.database, OWNER)
    past, made = (sessions.sign_in(domain.database, key.secret, seconds) for seconds in (-5, 60))
    assert past is not None
    assert made is not None
    assert sessions.find_session(domain.database, past.token) is None
    found = sessions.find_session(domain.database, made.token)
    assert found is not None
    assert found.key.id == key.id
    revoke_key(domain.database, key.id)
    assert sessions.find_session(domain.database, made.token) is None
