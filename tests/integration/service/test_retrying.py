"""Retries from a stage on, on both databases."""

from __future__ import annotations

import dataclasses

import httpx
import pytest

from service.jobs import service
from service.jobs.errors import Conflict, InvalidRequest
from service.jobs.registry import models
from service.jobs.running import attempts
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, Domain, in_order


def retry(domain: Domain, job: str, start: str):
    return service.retry(domain.database, domain.store, OWNER, job, start)


def test_from_a_stage_on_everything_is_computed_anew_and_what_was_before_is_kept(domain: Domain) -> None:
    job = domain.submit(dataclasses.replace(ALLO, stages={"sft": {}})).job.id
    order = [stage.name for stage in domain.view(job).stages]
    works = {}
    while (claimed := domain.claim()).name != "improve":
        works[claimed.name] = claimed.work
        domain.finish(claimed)
    assert attempts.fail(domain.database, claimed.stage_id, claimed.epoch, "no_pairs", "It failed.", False)
    view = retry(domain, job, "locate")
    assert domain.statuses(job)["sft"] == "succeeded"
    assert domain.statuses(job)["locate"] == "ready", "not reused, though its very result was there"
    assert "locate" in domain.events(job)[-1].message
    again = domain.claim()
    assert again.name == "locate"
    assert again.work != works["locate"], "it goes on from no checkpoint that was there"
    domain.finish(again)
    computed = domain.run_all()
    assert {"improve", "evaluate"} <= set(computed)
    assert not {"sft", "sample", "pair"} & set(computed)
    assert [stage.name for stage in view.stages] == order
    done = domain.view(job)
    assert done.job.status == "succeeded"
    assert in_order(domain.events(job))


def test_a_result_that_goes_is_no_model_any_more_until_it_is_made_again(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    domain.made["sft"] = domain.store.put_stream([b"weights"])
    domain.finish(domain.claim())
    claimed = domain.claim()
    attempts.fail(domain.database, claimed.stage_id, claimed.epoch, "crashed", "It crashed.", False)
    assert len(models.names(domain.database, OWNER, 10)) == 2
    retry(domain, job, "sft")
    assert models.names(domain.database, OWNER, 10) == ["tiny"]
    assert domain.view(job).artifacts == ()
    assert domain.run_all() == ["sft", "evaluate"]
    assert len(models.names(domain.database, OWNER, 10)) > 2


def test_a_stage_that_the_job_has_not_and_a_job_that_goes_on_are_refused(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    with pytest.raises(Conflict, match="only a failed or cancelled job"):
        retry(domain, job, "sft")
    service.cancel(domain.database, OWNER, job)
    with pytest.raises(InvalidRequest, match="its stages are sft, evaluate"):
        retry(domain, job, "sfft")
    assert domain.view(job).job.status == "cancelled"


def test_the_api_takes_a_stage(http: httpx.Client, served: Domain) -> None:
    jobs = str(http.base_url).rstrip("/")
    job = http.post(jobs, json={"model": "tiny", "training_file": "file-train"}).json()
    claimed = served.claim()
    attempts.fail(served.database, claimed.stage_id, claimed.epoch, "diverged", "It diverged.", False)
    refused = http.post(f"{job['id']}/retry", json={"from": "pair"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "from")
    assert http.post(f"{job['id']}/retry", json={"from": "sft"}).json()["status"] == "queued"
