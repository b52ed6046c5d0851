"""Limits of a job's time, on both databases."""

from __future__ import annotations

import dataclasses

import httpx

from service.jobs import service
from service.jobs.running import attempts
from tests.integration.service.domain import OWNER, SUPERVISED, Domain


def test_a_job_is_over_once_its_stages_have_run_for_its_seconds_together(domain: Domain) -> None:
    job = domain.submit(dataclasses.replace(SUPERVISED, max_seconds=10)).job.id
    first = domain.claim()
    assert not attempts.heartbeat(domain.database, first.stage_id, first.epoch, ran=6).over
    domain.finish(first)
    second = domain.claim()
    assert not attempts.heartbeat(domain.database, second.stage_id, second.epoch, ran=3.5).over
    assert attempts.heartbeat(domain.database, second.stage_id, second.epoch, ran=0.5).over
    assert attempts.fail(domain.database, second.stage_id, second.epoch, "deadline", "Time is over.", False)
    view = domain.view(job)
    assert (view.job.status, view.job.error["code"]) == ("failed", "deadline")
    assert domain.statuses(job)["sft"] == "succeeded"
    assert service.retry(domain.database, domain.store, OWNER, job).stages[1].ran_seconds == 0
    third = domain.claim()
    assert not attempts.heartbeat(domain.database, third.stage_id, third.epoch, ran=9).over, "a retry has all its time"


def test_without_a_limit_no_job_is_ever_over(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    claimed = domain.claim()
    assert not attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch, ran=1e9).over


def test_the_api_takes_a_limit(http: httpx.Client, served: Domain) -> None:
    jobs = str(http.base_url).rstrip("/")
    job = http.post(jobs, json={"model": "tiny", "training_file": "file-train", "max_seconds": 60}).json()
    assert (job["max_seconds"], job["ran_seconds"]) == (60, 0)
    claimed = served.claim()
    attempts.fail(served.database, claimed.stage_id, claimed.epoch, "deadline", "Time is over.", False)
    again = http.post(f"{job['id']}/retry", json={"max_seconds": 90}).json()
    assert (again["status"], again["max_seconds"]) == ("queued", 90)
    assert http.post(jobs, json={"model": "tiny", "training_file": "file-train", "max_seconds": 0}).status_code == 422
