"""Pause and resume, on both databases: what has not started waits, what runs is told, and nothing is lost."""

from __future__ import annotations

import pytest

from service.jobs import service
from service.jobs.errors import Conflict, NotFound
from service.jobs.running import attempts, dispatch
from service.jobs.running.attempts import Beat
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, WORKER, Domain, in_order


def pause(domain: Domain, job_id: str) -> str:
    return service.pause(domain.database, OWNER, job_id).job.status.value


def resume(domain: Domain, job_id: str) -> str:
    return service.resume(domain.database, domain.store, OWNER, job_id).job.status.value


def test_a_queued_job_waits_until_it_is_resumed(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    assert pause(domain, job) == "paused"
    assert dispatch.ready_stages(domain.database) == ()
    assert resume(domain, job) == "queued"
    assert domain.run_all() == ["sft", "evaluate"]
    assert domain.view(job).job.status == "succeeded"
    assert in_order(domain.events(job))


def test_each_once_more_changes_nothing(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    assert resume(domain, job) == "queued"
    pause(domain, job)
    events = len(domain.events(job))
    assert pause(domain, job) == "paused"
    assert len(domain.events(job)) == events
    assert [resume(domain, job), resume(domain, job)] == ["queued", "queued"]
    assert len(domain.events(job)) == events + 1


def test_whoever_was_rung_for_a_paused_stage_comes_too_late(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    rung = domain.dispatch()
    pause(domain, job)
    assert attempts.claim(domain.database, *rung, WORKER) is None
    assert dispatch.dispatched_stages(domain.database) == ()
    resume(domain, job)
    assert attempts.claim(domain.database, *rung, WORKER) is None, "it must be given anew"
    assert domain.run_all() == ["sft", "evaluate"]


def test_what_runs_is_told_and_given_back_uncounted(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    assert pause(domain, job) == "paused"
    beat = attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch, 3, 10)
    assert beat == Beat(alive=True, cancel=False, pause=True)
    assert attempts.release(domain.database, claimed.stage_id, claimed.epoch)
    assert domain.statuses(job)["sft"] == "waiting"
    assert dispatch.running_stages(domain.database) == dispatch.ready_stages(domain.database) == ()
    assert resume(domain, job) == "queued"
    assert domain.claim().attempt == 1


def test_a_job_that_is_resumed_while_it_still_stops_goes_on(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    pause(domain, job)
    assert resume(domain, job) == "running"
    assert attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch) == Beat(alive=True, cancel=False)
    assert attempts.release(domain.database, claimed.stage_id, claimed.epoch)
    assert domain.run_all() == ["sft", "evaluate"]


def test_a_stage_that_ends_before_it_could_stop_counts_and_the_next_one_waits(domain: Domain) -> None:
    job = domain.submit(ALLO).job.id
    claimed = domain.claim()
    pause(domain, job)
    assert domain.finish(claimed)
    assert domain.statuses(job)["sample"] == "succeeded"
    assert (domain.view(job).job.status, dispatch.ready_stages(domain.database)) == ("paused", ())
    resume(domain, job)
    assert domain.run_all()[0] == "pair"


def test_a_job_whose_last_stage_ends_while_it_pauses_has_succeeded(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    domain.finish(domain.claim())
    last = domain.claim()
    pause(domain, job)
    assert domain.finish(last)
    assert domain.view(job).job.status == "succeeded"


@pytest.mark.parametrize(("retry", "status"), [(True, "paused"), (False, "failed")])
def test_an_attempt_that_fails_while_it_pauses_is_an_attempt(domain: Domain, retry: bool, status: str) -> None:
    job = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    pause(domain, job)
    assert attempts.fail(domain.database, claimed.stage_id, claimed.epoch, "crashed", "It crashed.", retry)
    assert domain.view(job).job.status == status
    assert domain.statuses(job)["sft"] == ("waiting" if retry else "failed")
    assert dispatch.ready_stages(domain.database) == ()


def test_a_worker_that_is_lost_while_it_pauses_leaves_the_job_paused(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    pause(domain, job)
    assert attempts.expire(domain.database, claimed.stage_id, claimed.epoch, 0)
    assert (domain.view(job).job.status, domain.statuses(job)["sft"]) == ("paused", "waiting")


def test_a_paused_job_can_be_cancelled(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    pause(domain, job)
    assert service.cancel(domain.database, OWNER, job).job.status == "cancelled"
    for verb in (pause, resume):
        with pytest.raises(Conflict, match="already cancelled"):
            verb(domain, job)


def test_a_job_that_is_pausing_is_cancelled_once_it_stopped(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    pause(domain, job)
    service.cancel(domain.database, OWNER, job)
    with pytest.raises(Conflict, match="being cancelled"):
        resume(domain, job)
    assert attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch).cancel
    assert attempts.release(domain.database, claimed.stage_id, claimed.epoch)
    assert domain.view(job).job.status == "cancelled"


def test_a_paused_job_counts_as_unfinished_and_another_owner_sees_none(domain: Domain) -> None:
    sender = domain.sender(max_active_jobs=1)
    job = domain.submit(SUPERVISED, sender).job.id
    pause(domain, job)
    with pytest.raises(Exception, match="unfinished"):
        domain.submit(SUPERVISED, sender)
    for verb in (service.pause, lambda *args: service.resume(args[0], domain.store, *args[1:])):
        with pytest.raises(NotFound):
            verb(domain.database, "stranger", job)
