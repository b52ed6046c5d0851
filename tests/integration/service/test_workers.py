"""Workers register, beat and go; stages are placed on them; and who may see it all."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from allo_engine.model.shape import Shape
from allo_engine.source import code_version, stage_code
from service.db import Database
from service.jobs.access.keys import create_key
from service.jobs.running import attempts, dispatch, workers
from service.jobs.running.workers import Watch
from service.jobs.tables import Model, Stage
from tests.integration.service.domain import SUPERVISED, WORKER, Domain, in_order, stage_by_name
from tests.offers import GIB, RATES, an_offer
from tests.waiting import until

LLAMA_8B = Shape(8_030_261_248, 4 * 8_030_261_248, 32, 4096, 14336, 32, 8, 128, 128256, False, 128256 * 4096)
JOBS = "/v1/fine_tuning/jobs"


def ids(views: list[workers.WorkerView]) -> list[str]:
    return [view.worker.id for view in views]


def as_large_as_8b(domain: Domain) -> None:
    """Have the model `tiny` be what a probe says of Llama 3.1 8B."""
    with domain.database.transaction() as session:
        verdict = {"packs": True, "reason": "", "shape": asdict(LLAMA_8B)}
        session.execute(update(Model).where(Model.id == "tiny").values(verdict=verdict))


# --- who is there


def test_a_worker_is_there_from_its_first_beat_until_it_leaves(domain: Domain) -> None:
    offer = an_offer(24, packages=("vllm",))
    workers.beat(domain.database, "gpu-1", "host", offer)
    workers.beat(domain.database, "gpu-1", "host", replace(offer, slots=2))
    view = workers.read_workers(domain.database)[0]
    assert (view.worker.id, view.worker.beat, view.offer) == ("gpu-1", 2, replace(offer, slots=2))
    workers.leave(domain.database, "gpu-1")
    workers.leave(domain.database, "gpu-1")
    assert ids(workers.read_workers(domain.database)) == [WORKER]


def test_only_a_worker_that_is_silent_is_forgotten(domain: Domain) -> None:
    assert not workers.forget(domain.database, WORKER, 0)
    assert workers.forget(domain.database, WORKER, 1)
    assert not workers.forget(domain.database, WORKER, 1)


def test_who_watches_goes_by_its_own_clock(database: Database) -> None:
    now = [0.0]
    watch = Watch(lease=60, clock=lambda: now[0])
    for name in ("dies", "lives"):
        workers.beat(database, name, "host", an_offer())
    assert list(watch.living(database)) == ["dies", "lives"]
    now[0] = 59
    workers.beat(database, "lives", "host", an_offer())
    assert list(watch.living(database)) == ["dies", "lives"]
    now[0] = 60
    assert list(watch.living(database)) == ["lives"]
    workers.beat(database, "dies", "host", an_offer())
    assert list(watch.living(database)) == ["dies", "lives"], "it was only away"


# --- what is placed where


def place(domain: Domain, worker: str, *devices: str) -> bool:
    """Give the first ready stage to a worker."""
    stage = dispatch.ready_stages(domain.database)[0]
    return dispatch.place(domain.database, domain.store, stage.stage_id, stage.epoch, worker, devices)


def test_a_stage_is_claimed_by_the_worker_that_it_was_given_to_and_no_other(domain: Domain) -> None:
    workers.beat(domain.database, "gpu", "host", an_offer(24, 24))
    domain.submit(SUPERVISED)
    stage = dispatch.ready_stages(domain.database)[0]
    assert place(domain, "gpu", "1")
    assert attempts.claim(domain.database, stage.stage_id, stage.epoch, WORKER) is None
    claimed = attempts.claim(domain.database, stage.stage_id, stage.epoch, "gpu")
    assert claimed is not None
    assert claimed.devices == ("1",)


def test_a_stage_that_was_placed_anew_is_no_more_its_first_workers(domain: Domain) -> None:
    workers.beat(domain.database, "gpu", "host", an_offer(24))
    domain.submit(SUPERVISED)
    stage = dispatch.ready_stages(domain.database)[0]
    assert place(domain, "gpu", "0")
    assert dispatch.place(domain.database, domain.store, stage.stage_id, stage.epoch, WORKER)
    assert attempts.claim(domain.database, stage.stage_id, stage.epoch, "gpu") is None
    claimed = attempts.claim(domain.database, stage.stage_id, stage.epoch, WORKER)
    assert claimed is not None
    assert claimed.devices is None, "it has none to choose from"


def test_no_device_is_promised_twice_whoever_dispatches(domain: Domain) -> None:
    workers.beat(domain.database, "gpu", "host", an_offer(24, 24))
    domain.submit(SUPERVISED)
    domain.submit(replace(SUPERVISED, seed=1))
    assert place(domain, "gpu", "0")
    assert not place(domain, "gpu", "0"), "another dispatcher saw it free"
    assert not place(domain, "gpu", "2"), "it never had such a device"
    assert not place(domain, "gone", "0")
    assert place(domain, "gpu", "1")


def test_a_stage_that_ends_badly_leaves_its_place(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    for end in (
        lambda claimed: attempts.fail(domain.database, claimed.stage_id, claimed.epoch, "crashed", "It crashed.", True),
        lambda claimed: attempts.release(domain.database, claimed.stage_id, claimed.epoch),
    ):
        assert end(domain.claim())
        stage = stage_by_name(domain, job, "sft")
        assert (stage.status, stage.worker, stage.devices) == ("ready", None, None)


# --- code


def planned_for(domain: Domain, code: str) -> None:
    """Have every stage be planned by a process of this code."""
    with domain.database.transaction() as session:
        session.execute(update(Stage).values(code=code, digest=code))


def test_a_worker_of_other_code_neither_gets_nor_claims_a_stage(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    workers.beat(domain.database, "newer", "host", an_offer(code="f" * 64))
    stage = dispatch.ready_stages(domain.database)[0]
    assert stage.code == stage_code("sft")
    assert not place(domain, "newer")
    message = domain.dispatch()
    planned_for(domain, "f" * 64)
    assert attempts.claim(domain.database, *message, WORKER) is None


def test_a_stage_whose_code_is_gone_is_planned_anew_and_its_owner_told(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    named = stage_by_name(domain, job, "sft").digest
    planned_for(domain, "f" * 64)
    stage = dispatch.ready_stages(domain.database)[0]
    assert dispatch.plan_anew(domain.database, stage.stage_id, stage.epoch)
    assert stage_by_name(domain, job, "sft").digest == named
    event = domain.events(job)[-1]
    assert (event.level, event.data["planned"], event.data["code"]) == ("warn", "f" * 64, stage_code("sft"))
    assert f"was planned for {'f' * 8}, which no worker has" in event.message
    domain.run_all()
    assert domain.view(job).job.status == "succeeded"
    assert in_order(domain.events(job))
    assert not dispatch.plan_anew(domain.database, stage.stage_id, stage.epoch), "it has run"


# --- over HTTP


@pytest.fixture
def client(app: FastAPI, secret: str) -> TestClient:
    return TestClient(app, headers={"authorization": f"Bearer {secret}"})


@pytest.fixture
def reader(app: FastAPI, served: Domain) -> TestClient:
    secret = create_key(served.database, "owner", ("read", "submit")).secret
    return TestClient(app, headers={"authorization": f"Bearer {secret}"})


def test_an_admin_sees_the_workers_and_what_they_run(client: TestClient, reader: TestClient, served: Domain) -> None:
    workers.leave(served.database, WORKER)
    offer = an_offer(24, None, packages=("vllm",))
    workers.beat(served.database, "gpu", "host", offer)
    job = served.submit(SUPERVISED).job.id
    assert place(served, "gpu", "1")
    refused = reader.get("/v1/workers")
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
    (worker,) = client.get("/v1/workers").json()["data"]
    assert worker["devices"] == [
        {"name": "0", "kind": "cuda", "memory_bytes": 24 * GIB},
        {"name": "1", "kind": "cuda", "memory_bytes": None},
    ]
    assert worker["backends"] == {"vllm": "1.0"}
    assert worker["calibrated"] is False
    assert worker["precisions"] == ["float32", "bfloat16"]
    assert (worker["id"], worker["slots"], worker["code_version"]) == ("gpu", 2, code_version())
    stage = stage_by_name(served, job, "sft")
    found = {"id": stage.id, "job_id": job, "name": "sft", "status": "dispatched", "devices": ["1"]}
    assert worker["stages"] == [found]
    seen = client.get(f"{JOBS}/{job}").json()["stages"][0]
    assert (seen["worker"], seen["devices"], seen["missing"]) == ("gpu", ["1"], None)
    workers.beat(served.database, "gpu", "host", replace(offer, rates=asdict(RATES)))
    assert [found["calibrated"] for found in client.get("/v1/workers").json()["data"]] == [True]


def test_without_a_worker_the_service_is_ready_and_says_so(app: FastAPI, served: Domain) -> None:
    client = TestClient(app)
    workers.beat(served.database, WORKER, "host", an_offer(24, host=48, packages=("vllm",)))
    ready = until(lambda: (found := client.get("/readyz").json())["workers"][:1] and found)
    assert ready["status"] == "ok"
    assert ready["workers"] == [
        {
            "devices": [{"kind": "cuda", "memory_bytes": 24 * GIB}],
            "memory_bytes": 48 * GIB,
            "precisions": ["float32", "bfloat16"],
            "backends": ["vllm"],
            "code_version": code_version(),
        }
    ], "and neither its name nor what it runs"
    workers.leave(served.database, WORKER)
    until(lambda: client.get("/readyz").json()["status"] == "no_worker")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["worker"], answer.json()["workers"]) == (200, False, [])


def submit(client: TestClient, **method: object) -> dict[str, object]:
    body = {"model": "tiny", "training_file": "file-train", "method": {"type": "allo", "allo": method}}
    answer = client.post(JOBS, json=body)
    assert answer.status_code == 200
    return dict(answer.json())


def lacking(job: dict[str, object]) -> dict[str, str]:
    return {stage["name"]: stage["missing"] for stage in job["stages"] if stage["missing"]}  # type: ignore[attr-defined]


def test_a_job_that_no_worker_can_run_says_what_is_missing_until_one_comes(client: TestClient, served: Domain) -> None:
    as_large_as_8b(served)
    workers.beat(served.database, WORKER, "host", an_offer(40))
    job = submit(client, stages={"locate": {"importance": "update"}})
    lacks = lacking(job)
    assert sorted(lacks) == ["reward_model", "warmup"], "what trains all weights"
    cure = "GiB on one device; the largest here has 40: set train: mask, or start a larger worker."
    assert lacks["warmup"].endswith(cure)
    warnings = [event for event in served.events(str(job["id"])) if event.level == "warn"]
    assert [event.data["stages"] for event in warnings] == [["warmup"], ["reward_model"]]
    assert warnings[0].message == f"{lacks['warmup']} The job waits for it."
    workers.beat(served.database, "larger", "host", an_offer(160))
    assert lacking(client.get(f"{JOBS}/{job['id']}").json()) == {}


def test_a_job_without_any_worker_says_so_once(client: TestClient, served: Domain) -> None:
    workers.leave(served.database, WORKER)
    job = submit(client)
    (lack,) = set(lacking(job).values())
    assert lack == "No worker is there yet: `allo up` starts one, and so does `python -m worker`."
    assert [event.level for event in served.events(str(job["id"]))].count("warn") == 1


@pytest.mark.parametrize("train", ["all", "mask"])
def test_what_a_stage_needs_is_shown_with_it(train: str, client: TestClient, served: Domain) -> None:
    as_large_as_8b(served)
    job = submit(client, hyperparameters={"train": train, "precision": "bfloat16"})
    needs = {stage["name"]: stage["needs"] for stage in job["stages"]}  # type: ignore[attr-defined]
    assert needs["pair"]["devices"] == 0
    assert needs["pair"]["device_memory_bytes"] == 0
    assert needs["improve"]["devices"] is None
    assert needs["improve"]["precision"] == "bfloat16"
    weights = needs["improve"]["device_memory_bytes"] / LLAMA_8B.weights
    assert 16 < weights < 20 if train == "all" else 3 < weights < 4.5
