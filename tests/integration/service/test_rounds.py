"""A job that aligns in rounds is a job with more stages: each has its row, its result and its model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from service.jobs.errors import InvalidRequest
from service.jobs.progression import checkpoint_model
from service.jobs.registry import hub, models
from service.jobs.running import attempts
from service.jobs.service import read, retry
from service.jobs.submission import NewJob
from service.jobs.sweeping import sweeps
from tests.integration.service.domain import ALLO, OWNER, Domain, stage_by_name
from tests.integration.service.test_sweeps import run_all

TWICE = replace(ALLO, stages={"sample": {"rounds": 2}})
AGAIN = ["sample-2", "pair-2", "improve-2"]


def run_apart(domain: Domain, metrics: dict[str, float] | None = None) -> list[str]:
    """Runs what can run, each stage to a result of its own; the stages that were computed."""
    done = []
    while True:
        try:
            claimed = domain.claim()
        except IndexError:
            return done
        domain.made[claimed.name] = domain.store.put_stream([claimed.digest.encode()])
        assert domain.finish(claimed, metrics if claimed.name == "evaluate" else None)
        done.append(claimed.name)


def test_two_rounds_run_to_a_model_each(domain: Domain) -> None:
    job_id = domain.submit(TWICE).job.id
    figures = {f"{name}_accuracy": 0.5 for name in ("base", "warmup", "forget", "improve", "improve-2")}
    done = run_apart(domain, figures)
    assert done[-4:] == [*AGAIN, "evaluate"]
    view = domain.view(job_id)
    assert view.job.status == "succeeded"
    last = models.read_model(domain.database, OWNER, view.job.fine_tuned_model)
    first, second = (
        models.read_model(domain.database, OWNER, checkpoint_model(view.job, name)) for name in ("improve", "improve-2")
    )
    assert last.files == second.files != first.files
    revisions = {found.name: found for found in hub.revisions(domain.database, OWNER, "jobs", job_id)}
    assert list(revisions) == ["main", "warmup", "forgotten", "improve"]
    card = revisions["main"].card.decode()
    assert "| aligned | 50.0 %" in card
    assert "| aligned, round 2 | 50.0 %" in card
    assert "- `sample-2`: `rounds = 2`" in card


def test_the_first_round_is_shared_with_the_job_that_has_no_other(domain: Domain) -> None:
    domain.submit(ALLO)
    once = run_apart(domain)
    domain.submit(TWICE)
    assert run_apart(domain) == [*AGAIN, "evaluate"]
    domain.submit(replace(ALLO, stages={"sample": {"rounds": 3}}))
    assert run_apart(domain) == ["sample-3", "pair-3", "improve-3", "evaluate"]
    assert {"sample", "improve"} <= set(once)


def test_the_settings_of_a_job_with_rounds_make_the_same_job_again(domain: Domain) -> None:
    first = domain.submit(replace(TWICE, seed=3))
    assert not any(name in first.job.method["stages"] for name in AGAIN)
    settings = json.loads(json.dumps(first.job.method["stages"]))
    again = domain.submit(NewJob("tiny", "file-train", "file-heldout", method="allo", stages=settings, seed=3))
    assert [(stage.name, stage.config, stage.inputs) for stage in first.stages] == [
        (stage.name, stage.config, stage.inputs) for stage in again.stages
    ]


def test_a_later_round_that_failed_is_tried_again_by_itself(domain: Domain) -> None:
    job_id = domain.submit(TWICE).job.id
    while (claimed := domain.claim()).name != "improve-2":
        domain.finish(claimed)
    attempts.fail(domain.database, claimed.stage_id, claimed.epoch, "diverged", "Lower the rate.", False)
    assert read(domain.database, OWNER, job_id).job.error["stage"] == "improve-2"
    retry(domain.database, domain.store, OWNER, job_id)
    assert domain.run_all() == ["improve-2", "evaluate"]


def test_another_job_trains_in_the_masks_of_the_last_round(domain: Domain) -> None:
    fresh = {"sample": {"rounds": 2}, "locate": {"importance": "random", "later_rounds": "fresh"}}
    job_id = domain.submit(replace(ALLO, stages=fresh)).job.id
    with pytest.raises(InvalidRequest, match=r"its stage locate-2 is waiting: .*, name a file that locate wrote"):
        domain.submit(replace(TWICE, masks=job_id, seed=1))
    run_apart(domain)
    masks = {name: stage_by_name(domain, job_id, name).id for name in ("locate", "locate-2")}
    files = {row.stage_id: row for row in domain.view(job_id).artifacts if row.output == "masks"}
    for named, source in ((job_id, "locate-2"), (files[masks["locate"]].id, "locate")):
        job = domain.submit(replace(TWICE, masks=named, seed=1)).job
        assert job.sources["masks"][0][1] == files[masks[source]].sha256


def test_a_sweep_over_rounds_pays_for_each_round_once(domain: Domain) -> None:
    found = sweeps.submit(domain.database, domain.store, ALLO, {"rounds": [1, 2, 3]}, domain.sender(), [])
    done = run_all(domain)
    assert [run.point["rounds"] for run in found.runs] == [1, 2, 3]
    assert done.pop("evaluate") == 3
    assert {"sample", "improve", *AGAIN, "improve-3"} <= done.keys()
    assert set(done.values()) == {1}
