"""The same result is never computed twice, in any job."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from service.db import Database
from service.jobs import service
from service.jobs.data.files import delete_file
from service.jobs.lifecycle import Priority
from service.jobs.progression import reusable
from service.jobs.registry import models
from service.jobs.running import dispatch
from service.jobs.submission import NewJob, admit
from service.jobs.tables import Stage
from service.storage import open_store
from tests.integration.service.domain import (
    ALLO,
    OWNER,
    SUPERVISED,
    WORKER,
    Domain,
    furnish,
    in_order,
    stage_by_name,
)
from tests.s3 import BUCKET, Wire, reached
from tests.waiting import PATIENCE, until


def test_the_same_job_again_reuses_every_stage_and_ends_at_once(domain: Domain) -> None:
    first = domain.submit(ALLO).job.id
    domain.run_all()
    again = domain.submit(ALLO)
    assert again.job.status == "succeeded"
    assert {stage.reused_from for stage in again.stages} == {stage.id for stage in domain.view(first).stages}
    assert again.job.fine_tuned_model != domain.view(first).job.fine_tuned_model
    files = [(row.output, row.path, row.sha256) for row in again.artifacts]
    assert sorted(files) == sorted((row.output, row.path, row.sha256) for row in domain.view(first).artifacts)
    assert in_order(domain.events(again.job.id))


def test_what_one_owner_computed_is_computed_again_for_another_and_nothing_tells_of_it(domain: Domain) -> None:
    domain.add_file("file-theirs", owner="stranger")
    theirs = replace(SUPERVISED, training_file="file-theirs", validation_file=None)
    domain.submit(replace(SUPERVISED, validation_file=None))
    first = domain.claim()
    other = domain.submit(theirs, domain.sender(owner="stranger"))
    assert [ring.stage_id for ring in dispatch.ready_stages(domain.database)] == [other.stages[0].id]
    second = domain.claim()
    assert first.digest == second.digest
    assert first.work != second.work
    assert domain.finish(first)
    domain.add_file("file-late", owner="late")
    late = domain.submit(replace(theirs, training_file="file-late"), domain.sender(owner="late"))
    assert (late.stages[0].status, late.stages[0].reused_from) == ("ready", None), "the result is there, and not theirs"
    assert domain.finish(second)
    again = domain.submit(replace(theirs, suffix="again"), domain.sender(owner="stranger"))
    assert again.stages[0].reused_from == second.stage_id


def test_a_changed_last_stage_is_all_that_a_sweep_pays_for(domain: Domain) -> None:
    domain.submit(ALLO)
    domain.run_all()
    changed = domain.submit(replace(ALLO, stages={"improve": {"beta": 0.2}})).job.id
    assert domain.run_all() == ["improve"]  # its files are the same, so that evaluate's inputs are too
    assert domain.view(changed).job.status == "succeeded"
    assert stage_by_name(domain, changed, "evaluate").reused_from is not None


@pytest.mark.parametrize(
    "change", [{}, {"stages": {"improve": {"beta": 0.2}}}, {"stages": {"warmup": {"beta": 0.2}}}, {"seed": 1}]
)
def test_what_a_job_would_take_over_is_what_it_takes_over_when_it_is_submitted(
    domain: Domain, change: dict[str, Any]
) -> None:
    domain.submit(ALLO)
    domain.run_all()
    new = replace(ALLO, **change)
    foreseen = foresee(domain, new)
    taken = {stage.name: stage.reused_from for stage in domain.submit(new).stages if stage.reused_from}
    assert foreseen == taken
    assert ("improve" in foreseen) == (change == {})


def foresee(domain: Domain, new: NewJob) -> dict[str, str]:
    with domain.database.snapshot() as session:
        job = admit(session, domain.store, new, domain.sender(), domain.database.now())
        found = reusable(session, domain.store, OWNER, job.sources, job.planned)
    return {name: stage.id for name, stage in found.items()}


def test_a_stage_whose_files_are_gone_is_computed_again(domain: Domain) -> None:
    domain.submit(ALLO)
    domain.run_all()
    domain.store.delete(domain.data.sha256)
    again = domain.submit(ALLO)
    assert {stage.status.value for stage in again.stages} == {"ready", "waiting"}


def test_of_two_jobs_that_want_the_same_one_computes_and_the_other_takes_it_over(domain: Domain) -> None:
    first, second = domain.submit(ALLO).job.id, domain.submit(ALLO).job.id
    (ring,) = dispatch.ready_stages(domain.database)
    claimed = domain.claim()
    assert (claimed.stage_id, claimed.job_id) == (ring.stage_id, first)
    assert dispatch.ready_stages(domain.database) == ()
    domain.finish(claimed)
    waiting = [ring for ring in dispatch.ready_stages(domain.database) if ring.stage_id != claimed.stage_id]
    other = stage_by_name(domain, second, "sample")
    assert other.id in {ring.stage_id for ring in waiting}
    assert not dispatch.place(domain.database, domain.store, other.id, other.epoch, WORKER)
    assert domain.statuses(second)["sample"] == "succeeded"
    assert domain.statuses(second)["pair"] == "ready"


def test_a_store_that_does_not_answer_holds_up_no_transaction(database: Database, wire: Wire, tmp_path: Path) -> None:
    s3 = reached(wire.endpoint, tmp_path / "cache", seconds=PATIENCE)
    domain = furnish(database, open_store(f"s3://{BUCKET}/{tmp_path.name}", s3))
    first, second = (domain.submit(SUPERVISED).job.id for _ in range(2))
    assert domain.finish(domain.claim())
    other = stage_by_name(domain, second, "sft")
    with ThreadPoolExecutor(1) as beside:
        wire.frozen = True
        placed = beside.submit(dispatch.place, database, domain.store, other.id, other.epoch, WORKER)
        try:
            until(lambda: wire.holds)
            service.prioritise(database, OWNER, second, Priority.LOW, admin=False)  # it locks the very job
            assert not placed.done()
        finally:
            wire.mend()
        assert placed.result() is False
    assert domain.statuses(first)["sft"] == domain.statuses(second)["sft"] == "succeeded"
    assert stage_by_name(domain, second, "sft").reused_from is not None


def test_what_was_taken_for_granted_and_is_not_there_is_as_if_it_had_never_been(domain: Domain) -> None:
    domain.submit(ALLO)
    domain.run_all()
    domain.store.delete(domain.data.sha256)
    again = domain.submit(ALLO).job.id
    told = [event.message for event in domain.events(again)]
    assert in_order(domain.events(again))
    assert not [message for message in told if "reused" in message]


def test_a_finished_job_leaves_models_that_others_can_start_from(domain: Domain) -> None:
    job_id = domain.submit(replace(ALLO, suffix="mine", stages={"sft": {}})).job.id
    domain.run_all()
    name = domain.view(job_id).job.fine_tuned_model
    assert name == f"ft:tiny:mine:{job_id[-8:]}"
    ours = [row.id for row in models.read_models(domain.database, OWNER) if row.owner == OWNER]
    assert sorted(ours) == [name, *(f"{name}:ckpt-{stage}" for stage in ("forget", "improve", "sft", "warmup"))]
    assert [row.id for row in models.read_models(domain.database, "stranger")] == ["tiny"]
    next_job = domain.submit(replace(ALLO, model=name)).job
    assert next_job.model == name
    domain.run_all()
    assert domain.view(next_job.id).job.fine_tuned_model == f"ft:tiny:owner:{next_job.id[-8:]}"


def test_a_job_keeps_the_content_that_it_was_submitted_with(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    delete_file(domain.database, OWNER, "file-train")
    models.delete_model(domain.database, OWNER, "tiny", admin=True)
    domain.run_all()
    assert service.read(domain.database, OWNER, job_id).job.status == "succeeded"


def test_a_result_bears_the_name_of_the_code_that_computed_it(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    right = stage_by_name(domain, job_id, "sample").digest
    with domain.database.transaction() as session:  # as a process of another version would have named it
        session.execute(update(Stage).values(digest="0" * 64))
    assert domain.claim().digest == right
    assert stage_by_name(domain, job_id, "sample").digest == right
