"""What is on the way to a result goes by a policy, and is computed again where it is wanted again."""

from __future__ import annotations

import os
from dataclasses import replace

import httpx
import pytest

from service.db import Database
from service.jobs import service
from service.jobs.data.erasing import Eraser, Keeping
from service.jobs.data.retention import LetGo, Policy, Retention, policy_of
from service.jobs.errors import InvalidRequest
from service.jobs.running import attempts
from service.jobs.tables import Export
from service.settings import Settings
from tests.clock import Clock
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, Domain, in_order

KEEPING = Keeping(0, 86_400, 86_400)

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""Of what has nothing to do with which database it is."""


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def ours(domain: Domain, clock: Clock) -> Domain:
    """The same, with a clock that the test moves, and another content for each stage's result."""
    database = Database(domain.database.engine.url.render_as_string(False), clock)
    stages = ("sft", "sample", "pair", "warmup", "locate", "reward_model", "token_rewards", "forget", "improve")
    made = {name: domain.store.put_stream([os.urandom(100)]) for name in (*stages, "evaluate")}
    yield Domain(database, domain.store, domain.data, made)  # type: ignore[misc]
    database.close()


def ended(ours: Domain, seed: int = 0) -> str:
    job: str = ours.submit(replace(ALLO, seed=seed)).job.id
    ours.run_all()
    assert ours.view(job).job.status == "succeeded"
    return job


def look(ours: Domain, **policy: float) -> LetGo:
    return Retention(ours.database, Policy(**policy), 86_400).look()  # type: ignore[arg-type]


def let_go(ours: Domain, job: str) -> set[str]:
    return {stage.name for stage in ours.view(job).stages if stage.let_go}


def test_the_result_stays_and_what_was_on_the_way_to_it_goes_and_says_so(ours: Domain, clock: Clock) -> None:
    job = ended(ours)
    view = ours.view(job)
    names = {stage.name for stage in view.stages}
    result = {row.sha256 for row in view.artifacts or () if row.stage_id in _ids(view, "improve", "evaluate")}
    clock.now += 100
    assert look(ours, seconds=100) == LetGo(0, 0)
    clock.now += 1
    done = look(ours, seconds=100)
    assert let_go(ours, job) == names - {"improve", "evaluate"}
    assert done.stages == len(names) - 2
    assert look(ours, seconds=100) == LetGo(0, 0), "it is gone"
    after = ours.view(job)
    assert {row.sha256 for row in after.artifacts or ()} == result
    assert done.bytes == sum(stage.let_go["bytes"] for stage in after.stages if stage.let_go)
    assert in_order(ours.events(job))
    assert "is computed again where it is wanted again" in ours.events(job)[-1].message
    eraser = Eraser(ours.database, ours.store, KEEPING, Clock())
    eraser.look()
    assert all(map(ours.store.exists, result))
    assert not ours.store.exists(ours.made["locate"].sha256)
    models = _models(ours, job)
    assert models == {after.job.fine_tuned_model, f"{after.job.fine_tuned_model}:ckpt-improve"}


def _ids(view: service.JobView, *names: str) -> set[str]:
    return {stage.id for stage in view.stages if stage.name in names}


def _models(ours: Domain, job: str) -> set[str]:
    with ours.database.snapshot() as session:
        return {model.id for model in service.repository.models_of_job(session, OWNER, job)}


@ON_SQLITE
def test_another_job_that_wants_it_computes_it_again(ours: Domain) -> None:
    ended(ours)
    again = ours.submit(ALLO)
    assert all(stage.status == "succeeded" for stage in again.stages), "all of it is reused"
    assert look(ours, jobs=0, bytes=1).stages > 0
    third = ours.submit(ALLO).job.id
    assert ours.statuses(third)["sample"] == "ready"
    assert "sample" in ours.run_all()
    assert ours.view(third).job.status == "succeeded"


@ON_SQLITE
def test_the_latest_jobs_keep_theirs_and_so_do_the_latest_bytes(ours: Domain, clock: Clock) -> None:
    jobs = []
    for seed in range(3):
        ours.made["sample"] = ours.store.put_stream([os.urandom(1000)])
        jobs.append(ended(ours, seed))
        clock.now += 1
    look(ours, jobs=2)
    assert [bool(let_go(ours, job)) for job in jobs] == [True, False, False]
    each = sum(row.bytes for row in ours.view(jobs[-1]).artifacts or ())
    look(ours, bytes=each)
    assert [bool(let_go(ours, job)) for job in jobs] == [True, True, False], "what they share counts once"


@ON_SQLITE
def test_what_an_unfinished_job_may_take_over_stays(ours: Domain, clock: Clock) -> None:
    first = ended(ours)
    waiting = ours.submit(replace(ALLO, seed=1)).job.id
    clock.now += 10
    assert look(ours, seconds=1) == LetGo(0, 0)
    service.cancel(ours.database, OWNER, waiting)
    assert look(ours, seconds=1).stages > 0
    assert let_go(ours, first)


def test_a_failed_job_keeps_what_it_can_be_retried_from_and_computes_again_what_went(
    ours: Domain, clock: Clock
) -> None:
    job = ours.submit(ALLO).job.id
    done = ours.claim()
    ours.finish(done)
    for _ in range(3):
        claimed = ours.claim()
        attempts.fail(ours.database, claimed.stage_id, claimed.epoch, "crashed", "It crashed.", True)
    clock.now += 86_400
    assert look(ours, seconds=1) == LetGo(0, 0), "it may be retried"
    clock.now += 1
    assert look(ours, seconds=1).stages == 1
    assert let_go(ours, job) == {done.name}
    service.retry(ours.database, ours.store, OWNER, job)
    assert done.name in ours.run_all()
    assert ours.view(job).job.status == "succeeded"
    assert not let_go(ours, job)
    assert in_order(ours.events(job))


@ON_SQLITE
def test_masks_that_went_cannot_be_taken_over_and_a_model_in_another_form_stays(ours: Domain, clock: Clock) -> None:
    job = ended(ours)
    name = f"{ours.view(job).job.fine_tuned_model}:ckpt-forget"
    with ours.database.transaction() as session:
        row = Export(id="e", owner=OWNER, model=name, format="gguf", options={}, status="ready", created_at=0)
        row.inputs, row.files = {}, []
        session.add(row)
    clock.now += 10
    look(ours, seconds=1)
    assert name in _models(ours, job)
    with pytest.raises(InvalidRequest, match="were let go"):
        ours.submit(replace(ALLO, masks=job))


@ON_SQLITE
def test_a_job_without_anything_between_is_left_alone(ours: Domain, clock: Clock) -> None:
    ours.submit(SUPERVISED)
    ours.run_all()
    clock.now += 10
    assert look(ours, seconds=1) == LetGo(0, 0)


def test_the_api_says_what_was_let_go(served: Domain, http: httpx.Client) -> None:
    job = ended(served)
    assert look(served, bytes=1).stages > 0
    stages = {stage["name"]: stage for stage in http.get(job).json()["stages"]}
    assert stages["sample"]["let_go"]["files"] == 1
    assert stages["sample"]["artifacts"] == []
    assert stages["improve"]["let_go"] is None


def test_without_a_policy_everything_stays() -> None:
    assert policy_of(Settings()) is None
    assert policy_of(Settings(intermediate_days=2)) == Policy(0, 172_800, 0)
