"""What is told of the attempts of a stage, on both databases."""

from __future__ import annotations

import httpx

from service.jobs.running import attempts
from tests.integration.service.domain import SUPERVISED, Domain, stage_by_name


def test_how_each_attempt_ended_is_told(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    stage = domain.claim()
    attempts.fail(domain.database, stage.stage_id, stage.epoch, "stalled", "It stood still.", True)
    stage = domain.claim()
    attempts.release(domain.database, stage.stage_id, stage.epoch)
    stage = domain.claim()
    attempts.expire(domain.database, stage.stage_id, stage.epoch, 0)
    domain.finish(domain.claim())
    told = stage_by_name(domain, job, "sft").attempts
    assert [one["reason"] for one in told] == ["stalled", "given_back", "worker_lost", "succeeded"]
    assert [one["message"] for one in told] == ["It stood still.", None, "The worker gave no sign of life.", None]
    assert all(one["worker"] and one["began_at"] <= one["ended_at"] for one in told)


def test_the_api_shows_attempts_of_one_job(http: httpx.Client, served: Domain) -> None:
    jobs = str(http.base_url).rstrip("/")
    job = http.post(jobs, json={"model": "tiny", "training_file": "file-train"}).json()
    claimed = served.claim()
    attempts.fail(served.database, claimed.stage_id, claimed.epoch, "diverged", "It diverged.", False)
    assert http.get(job["id"]).json()["stages"][0]["attempts"][0]["reason"] == "diverged"
    assert "attempts" not in http.get(jobs).json()["data"][0]["stages"][0]
