"""A job that has ended is deleted with all that it left, and nothing that anybody else has goes with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from sqlalchemy import select

from service.db import Base
from service.jobs import service
from service.jobs.access import webhooks
from service.jobs.data.erasing import Eraser, Keeping
from service.jobs.errors import Busy, Conflict, NotFound
from service.jobs.registry import exports, models
from service.jobs.running import attempts
from service.jobs.running.attempts import Beat
from service.jobs.tables import Model
from tests.clock import Clock
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, Domain


def delete(domain: Domain, job_id: str) -> None:
    service.delete(domain.database, OWNER, job_id)


def rows(domain: Domain) -> dict[str, list[str]]:
    with domain.database.snapshot() as session:
        return {
            table.name: sorted(map(str, session.execute(select(table)).all())) for table in Base.metadata.sorted_tables
        }


def erased(domain: Domain) -> int:
    """How many blobs go once the grace is over."""
    clock = Clock(0.0)
    eraser = Eraser(domain.database, domain.store, Keeping(grace=10, refused=1e9, retriable=1e9), clock)
    eraser.look()
    clock.now += 10
    return eraser.look().blobs


def test_a_deleted_job_leaves_no_row_behind(domain: Domain) -> None:
    webhooks.create(domain.database, OWNER, "mine", "https://example.org", ["fine_tuning.job.succeeded"], "secret")
    before = rows(domain)
    job_id = domain.submit(ALLO).job.id
    domain.run_all()
    name = domain.view(job_id).job.fine_tuned_model
    assert name is not None
    exports.ask(domain.database, OWNER, name, "gguf", {"type": "f16"})
    assert {table for table, found in rows(domain).items() if found != before[table]} == {
        *("jobs", "stages", "events", "artifacts", "models", "exports", "files", "webhook_deliveries")
    }
    delete(domain, job_id)
    assert rows(domain) == before
    for look in (service.read, service.delete, models.read_model):
        with pytest.raises(NotFound):
            look(domain.database, OWNER, name if look is models.read_model else job_id)


def test_a_job_that_may_go_on_is_not_deleted(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    with pytest.raises(Conflict, match="is queued: cancel it first"):
        delete(domain, job_id)
    service.pause(domain.database, OWNER, job_id)
    with pytest.raises(Conflict, match="is paused"):
        delete(domain, job_id)
    service.resume(domain.database, domain.store, OWNER, job_id)
    claimed = domain.claim()
    service.cancel(domain.database, OWNER, job_id)
    with pytest.raises(Conflict, match="is running"):
        delete(domain, job_id)
    attempts.confirm_cancelled(domain.database, claimed.stage_id, claimed.epoch)
    delete(domain, job_id)


def test_a_failed_job_waits_for_what_still_runs_of_it_and_a_late_worker_changes_nothing(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    for _ in range(3):  # sample, pair, warmup: then two stages can run side by side
        domain.finish(domain.claim())
    first, second = domain.claim(), domain.claim()
    attempts.fail(domain.database, first.stage_id, first.epoch, "diverged", "It diverged.", False)
    assert domain.view(job_id).job.status == "failed"
    with pytest.raises(Busy, match="still stopping"):
        delete(domain, job_id)
    attempts.confirm_cancelled(domain.database, second.stage_id, second.epoch)
    delete(domain, job_id)
    late = (domain.database, second.stage_id, second.epoch)
    assert attempts.heartbeat(*late, 1, 2) == Beat(alive=False, cancel=True)
    assert not attempts.record_message(*late, "info", "I still live.")
    assert not domain.finish(second)
    assert not attempts.fail(*late, "late", "late", True)
    assert not attempts.release(*late)
    assert not attempts.confirm_cancelled(*late)
    assert not attempts.expire(*late, 0)


def test_what_another_job_took_over_stays_its_own_and_goes_with_the_last_of_them(domain: Domain) -> None:
    domain.made["sft"] = domain.store.put_stream([b"weights"])
    first = domain.submit(SUPERVISED).job.id
    domain.run_all()
    second = domain.submit(replace(SUPERVISED, suffix="again")).job.id
    delete(domain, first)
    assert erased(domain) == 0
    name = domain.view(second).job.fine_tuned_model
    assert name is not None
    assert models.read_model(domain.database, OWNER, name).files[0]["sha256"] == domain.made["sft"].sha256
    third = domain.submit(replace(SUPERVISED, suffix="third"))
    assert third.job.status == "succeeded", "the second job's result is taken over in its turn"
    delete(domain, second)
    delete(domain, third.job.id)
    assert erased(domain) == 1
    domain.submit(SUPERVISED)
    assert domain.run_all() == ["sft", "evaluate"], "what is gone is computed anew"


def test_a_job_that_began_with_a_deleted_jobs_model_or_masks_goes_on(domain: Domain) -> None:
    first = domain.submit(ALLO).job.id
    domain.run_all()
    name = domain.view(first).job.fine_tuned_model
    assert name is not None
    on_its_model = domain.submit(replace(SUPERVISED, model=name)).job.id
    in_its_masks = domain.submit(replace(ALLO, masks=first, seed=1)).job.id
    delete(domain, first)
    assert erased(domain) == 0
    domain.run_all()
    assert domain.view(on_its_model).job.status == domain.view(in_its_masks).job.status == "succeeded"


def test_a_model_that_was_registered_under_a_name_of_its_own_stays(domain: Domain) -> None:
    domain.made["sft"] = domain.store.put_stream([b"weights"])
    job_id = domain.submit(SUPERVISED).job.id
    domain.run_all()
    with domain.database.transaction() as session:
        made = session.get(Model, domain.view(job_id).job.fine_tuned_model)
        assert made is not None
        session.add(Model(id="mine", owner=OWNER, created_at=0, files=made.files))
    delete(domain, job_id)
    assert erased(domain) == 0
    assert models.read_model(domain.database, OWNER, "mine").files == made.files


def test_of_many_that_delete_one_does_and_the_others_find_nothing(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    domain.run_all()
    start = Barrier(6)

    def try_it(_: int) -> bool:
        start.wait()
        try:
            delete(domain, job_id)
        except NotFound:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(try_it, range(6))) == 1
