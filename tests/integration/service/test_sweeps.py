"""One job at many points: each an ordinary job, all of them or none, what they share computed once, and a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

from allo_engine.pipeline import PlanError
from service.jobs import service
from service.jobs.errors import InvalidRequest, NotFound, TooMany
from service.jobs.repository import Page
from service.jobs.running import attempts, dispatch
from service.jobs.running.attempts import Claim
from service.jobs.submission import NewJob, Sender
from service.jobs.sweeping import sweeps
from service.jobs.sweeping.outcomes import best_first, best_of, notes, status_of
from service.jobs.sweeping.sweeps import SweepView
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, WORKER, Domain

RATES = {"improve.learning_rate": [1e-6, 1e-5, 1e-4]}


def submitted(domain: Domain, values: dict[str, Any], new: NewJob = ALLO, sender: Sender | None = None) -> SweepView:
    return sweeps.submit(domain.database, domain.store, new, values, sender or domain.sender(), [])


def jobs(domain: Domain) -> int:
    return len(service.read_page(domain.database, OWNER, Page(1000))[0])


def run_all(domain: Domain, metrics: Callable[[Claim], dict[str, Any]] = lambda _: {}) -> Counter[str]:
    """Runs whatever can run, each stage to a result of its settings and inputs; how often each was computed."""
    done = Counter[str]()
    while rings := dispatch.ready_stages(domain.database):
        ring = rings[0]
        if dispatch.place(domain.database, domain.store, ring.stage_id, ring.epoch, WORKER):
            claimed = attempts.claim(domain.database, ring.stage_id, ring.epoch, WORKER)
            assert claimed is not None
            domain.made[claimed.name] = domain.store.put_stream([claimed.digest.encode()])
            assert domain.finish(claimed, metrics(claimed))
            done[claimed.name] += 1
    return done


def test_every_point_is_an_ordinary_job_with_its_own_settings(domain: Domain) -> None:
    values = {"improve.learning_rate": [1e-6, 1e-5], "seed": [3, 4], "n_epochs": [2]}
    found = submitted(domain, values, replace(ALLO, stages={"improve": {"beta": 0.2}}, suffix="swept"))
    points = [run.point for run in found.runs]
    assert points == [
        {"improve.learning_rate": rate, "seed": seed, "n_epochs": 2} for rate in (1e-6, 1e-5) for seed in (3, 4)
    ]
    for run in found.runs:
        view = domain.view(run.job.id)
        improve = next(stage for stage in view.stages if stage.name == "improve").config
        assert (improve["learning_rate"], improve["beta"]) == (run.point["improve.learning_rate"], 0.2)
        assert (improve["seed"], improve["n_epochs"]) == (run.point["seed"], 2)
        assert (view.job.seed, view.job.suffix) == (run.point["seed"], "swept")
        assert view.job.sweep_id == found.id
    service.cancel(domain.database, OWNER, found.runs[0].job.id)
    assert status_of(sweeps.read(domain.database, OWNER, found.id).jobs) == "running"


def test_what_the_points_share_is_computed_once(domain: Domain) -> None:
    found = submitted(domain, RATES, replace(ALLO, stages={"sft": {}}))
    done = run_all(domain)
    assert done.pop("improve") == done.pop("evaluate") == 3
    assert {"sft", "sample", "pair", "warmup", "locate", "forget"} <= done.keys()
    assert set(done.values()) == {1}
    assert status_of(sweeps.read(domain.database, OWNER, found.id).jobs) == "succeeded"


@pytest.mark.parametrize(
    ("values", "change", "error", "words"),
    [
        ({"seed": list(range(13)), "improve.beta": [0.1, 0.2, 0.3, 0.4, 0.5]}, {}, InvalidRequest, "65 points"),
        ({"seed": list(range(11))}, {}, InvalidRequest, "11 points, and you may have 10"),
        ({"seed": list(range(10))}, {}, TooMany, "1 unfinished jobs of 10, and this would be 10 more"),
        ({"improve.beta": [0.1, 0.2, -1]}, {}, PlanError, "given: -1"),
        ({"improve.colour": ["red"]}, {}, PlanError, "no setting of this stage"),
        ({"zeta": [1, 2]}, {}, PlanError, "zeta"),
        ({"dream.beta": [1]}, {}, PlanError, "dream"),
        ({"seed": [0, True]}, {}, InvalidRequest, "whole number"),
        ({"seed": [0, 2**31]}, {}, InvalidRequest, "whole number"),
        ({"seed": [0, 1, 0]}, {}, InvalidRequest, "are the same job"),
        (
            {"n_epochs": [1, 2]},
            {"method": "supervised", "stages": {"sft": {"n_epochs": 1}}},
            InvalidRequest,
            "same job",
        ),
        ({"forget.beta": [0.1]}, {"stages": {"forget": None}}, InvalidRequest, "leaves stage forget out"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_whole(
    domain: Domain, values: dict[str, Any], change: dict[str, Any], error: Any, words: str
) -> None:
    domain.submit(SUPERVISED)
    sender = domain.sender(max_active_jobs=10)
    with pytest.raises(error) as raised:
        submitted(domain, values, replace(ALLO, **change), sender)
    assert words in raised.value.message
    assert jobs(domain) == 1
    assert sweeps.read_page(domain.database, OWNER, Page()) == ([], False)


ACCURACY = {1e-6: (0.5, 0.52), 1e-5: (0.6, 0.7), 1e-4: (0.9, 0.3)}
"""By rate and seed."""


def found_accuracy(domain: Domain, claimed: Claim) -> dict[str, Any]:
    """What `evaluate` tells: base and aligned model, with an interval of 0.1 on either side."""
    job = domain.view(claimed.job_id).job
    if claimed.name == "improve":
        return {"best_validation_loss": 0.25}
    if claimed.name != "evaluate" or not job.sweep_point:
        return {}
    value = ACCURACY[job.sweep_point["improve.learning_rate"]][job.seed]
    aligned = {"improve_accuracy": value, "improve_accuracy_low": value - 0.1, "improve_accuracy_high": value + 0.1}
    return {"base_accuracy": 0.99, **aligned}


def test_an_estimate_asks_once_how_the_owners_jobs_ended_however_many_points_there_are(domain: Domain) -> None:
    asked: list[str] = []
    event.listen(domain.database.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    plans = sweeps.foresee(domain.database, domain.store, ALLO, RATES, domain.sender(), {})
    assert len({id(plan.past) for _, plan in plans}) == 1
    assert sum("jobs.estimate IS NOT NULL" in statement for statement in asked) == 1


def test_the_best_is_the_setting_whose_seeds_are_best_in_the_mean_and_its_luck_is_told(domain: Domain) -> None:
    swept = submitted(domain, {**RATES, "seed": [0, 1]})
    waiting = sweeps.read(domain.database, OWNER, swept.id).runs
    assert best_of(waiting) is None
    assert list(notes(waiting, None)) == ["6 of 6 points have no figure."]
    run_all(domain, lambda claimed: found_accuracy(domain, claimed))
    runs = sweeps.read(domain.database, OWNER, swept.id).runs
    figures = [run.figure.value for run in runs if run.figure]
    assert figures == [value for pair in ACCURACY.values() for value in pair]
    assert {run.best_validation_loss for run in runs} == {0.25}
    best = best_of(runs)
    assert best is not None
    assert best.setting == {"improve.learning_rate": 1e-5}, "one lucky seed does not win"
    assert best.job_ids == (runs[2].job.id, runs[3].job.id)
    assert best.figure.value == pytest.approx(0.65)
    assert (best.figure.low, best.figure.high) == (pytest.approx(0.55), pytest.approx(0.75))
    assert (best.rivals, best.close) == (2, 1), "0.6 lies within, 0.51 does not"
    close, flattered = notes(runs, best)
    assert close.startswith("1 of the 2 other settings lie within")
    assert "another validation_file" in flattered


def test_of_losses_the_lowest_is_best_and_without_a_held_out_file_none(domain: Domain) -> None:
    rates = {"sft.learning_rate": [1e-6, 1e-5]}
    swept = submitted(domain, rates, SUPERVISED)

    def loss(claimed: Claim) -> dict[str, Any]:
        point = domain.view(claimed.job_id).job.sweep_point or {}
        return {"sft_cross_entropy": 1e5 * point["sft.learning_rate"]} if claimed.name == "evaluate" else {}

    run_all(domain, loss)
    runs = sweeps.read(domain.database, OWNER, swept.id).runs
    assert [run.job.id for run in best_first(runs[::-1])] == [run.job.id for run in runs]
    best = best_of(runs)
    assert best is not None
    assert (best.setting, best.figure.low, best.close) == ({"sft.learning_rate": 1e-6}, None, 0)
    blind = submitted(domain, rates, replace(SUPERVISED, validation_file=None)).runs
    assert best_of(blind) is None
    assert "with a validation_file" in next(notes(blind, None))


def test_a_sweep_is_what_is_left_of_its_jobs_and_its_owners_alone(domain: Domain) -> None:
    first, second = (submitted(domain, {"seed": [seed, seed + 1]}, SUPERVISED) for seed in (0, 2))
    page, more = sweeps.read_page(domain.database, OWNER, Page(1))
    assert ([view.id for view in page], more) == ([second.id], True)
    page, more = sweeps.read_page(domain.database, OWNER, Page(1, second.id))
    assert ([view.id for view in page], len(page[0].jobs), more) == ([first.id], 2, False)
    assert sweeps.read_page(domain.database, "stranger", Page()) == ([], False)
    for verb in (sweeps.read, sweeps.cancel):
        with pytest.raises(NotFound):
            verb(domain.database, "stranger", first.id)
    service.cancel(domain.database, OWNER, first.jobs[0].id)
    service.delete(domain.database, OWNER, first.jobs[0].id)
    left = sweeps.cancel(domain.database, OWNER, first.id)
    assert [(job.id, job.status) for job in left.jobs] == [(first.jobs[1].id, "cancelled")]
    assert status_of(sweeps.cancel(domain.database, OWNER, first.id).jobs) == "cancelled", "once more changes nothing"
    assert status_of(sweeps.read(domain.database, OWNER, second.id).jobs) == "queued"
    service.delete(domain.database, OWNER, first.jobs[1].id)
    with pytest.raises(NotFound):
        sweeps.read(domain.database, OWNER, first.id)


def test_over_http_a_sweep_and_its_jobs_name_each_other(app: FastAPI, secret: str, served: Domain) -> None:
    client = TestClient(app, headers={"authorization": f"Bearer {secret}"})
    body = {"model": "tiny", "training_file": "file-train", "validation_file": "file-heldout"}
    swept = {**body, "sweep": {"sft.learning_rate": [1e-6, 1e-5]}}
    answer = client.post("/v1/fine_tuning/sweeps", json=swept).json()
    assert (answer["status"], answer["jobs"], answer["best"]) == ("queued", {"queued": 2}, None)
    job = client.get(f"/v1/fine_tuning/jobs/{answer['points'][1]['job_id']}").json()
    assert job["sweep"] == {"id": answer["id"], "point": {"sft.learning_rate": 1e-5}}
    assert client.post("/v1/fine_tuning/jobs", json=body).json()["sweep"] is None
    served.run_all()
    read = client.get(f"/v1/fine_tuning/sweeps/{answer['id']}").json()
    assert [point["progress"] for point in read["points"]] == [1, 1]
    (listed,) = client.get("/v1/fine_tuning/sweeps").json()["data"]
    assert listed == {key: read[key] for key in listed}
    assert "points" not in listed
    for wrong in ({}, {"seed": []}, {"seed": 1}, {"": [1]}, {"a\0": [1]}, {"improve.beta": [float("1e400")]}):
        refused = client.post(
            "/v1/fine_tuning/sweeps",
            content=str({**body, "sweep": wrong}).replace("'", '"'),
            headers={"content-type": "application/json"},
        )
        assert refused.status_code in (400, 422), wrong
