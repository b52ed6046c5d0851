"""What a job told, for those who look at it."""

from __future__ import annotations

from service.jobs import story
from service.jobs.running import attempts
from tests.integration.service.domain import SUPERVISED, Domain


def test_beginnings_and_ends_of_attempts_are_found_among_all_that_was_told(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    for _ in range(2):
        claimed = domain.claim()
        told = (domain.database, claimed.stage_id, claimed.epoch, "info", "Step 1.")
        attempts.record_message(*told, {"step": 1, "code": 7}, type="metrics")
        attempts.record_message(*told)
        assert attempts.release(domain.database, claimed.stage_id, claimed.epoch)
    domain.run_all()
    found = [event.data for event in story.read_turns(domain.database, job, 100)]
    keys = [next(key for key in ("metrics", "outcome", "attempt") if key in data) for data in found]
    assert keys == ["attempt", "outcome"] * 2 + ["attempt", "metrics"] * 2
    newest = story.read_turns(domain.database, job, 3)
    assert [event.data for event in newest] == found[-3:]
