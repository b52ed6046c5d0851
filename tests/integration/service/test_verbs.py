"""The domain's verbs, on both databases: a job's way to each of its ends, and the fences on it."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

import pytest

from service.db import Database
from service.jobs import service
from service.jobs.errors import Conflict, NotFound
from service.jobs.repository import Page
from service.jobs.running import attempts, dispatch
from service.jobs.running.attempts import Beat
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, WORKER, Domain, in_order, stage_by_name


def test_a_job_runs_its_stages_in_the_order_of_their_needs(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    assert domain.run_all() == [
        "sample",
        "pair",
        "warmup",
        "locate",
        "reward_model",
        "token_rewards",
        "forget",
        "improve",
        "evaluate",
    ]
    view = domain.view(job_id)
    assert view.job.status == "succeeded"
    assert view.job.fine_tuned_model == f"ft:tiny:owner:{job_id[-8:]}"
    assert view.job.finished_at is not None
    assert in_order(domain.events(job_id))


def test_whatever_the_clocks_say_events_have_times_in_their_order_and_stages_took_their_seconds(
    domain: Domain,
) -> None:
    job_id, now = domain.submit(SUPERVISED).job.id, time.time()
    leaps = itertools.cycle([3 * 3600, -3 * 3600, 30 * 86_400, -30 * 86_400, 0])
    domain.database = Database(domain.database.engine.url.render_as_string(False), lambda: now + next(leaps))
    for _ in range(2):
        claimed = domain.claim()
        assert attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch, ran=7).alive
        assert domain.finish(claimed)
    told = [event.created_at for event in domain.events(job_id)]
    assert told == sorted(told)
    assert told[-1] > now + 86_400
    again = domain.submit(replace(SUPERVISED, seed=1)).job.id
    assert domain.view(again).earlier_seconds == {"sft": 7, "evaluate": 7}
    domain.database.close()


def test_a_claim_names_the_files_of_every_input(domain: Domain) -> None:
    domain.submit(ALLO)
    assert domain.finish(domain.claim())
    pair = domain.claim()
    assert pair.inputs == {
        "model": (("model.safetensors", domain.data.sha256, domain.data.size),),
        "responses": (("data.bin", domain.data.sha256, domain.data.size),),
    }
    assert (pair.name, pair.attempt, pair.config["max_pairs"]) == ("pair", 1, 5)


def test_a_stage_is_claimed_once(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    stage_id, epoch = domain.dispatch()
    assert attempts.claim(domain.database, stage_id, epoch, WORKER) is not None
    assert attempts.claim(domain.database, stage_id, epoch, WORKER) is None


def test_a_stage_that_nobody_was_rung_for_cannot_be_claimed(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    ring = dispatch.ready_stages(domain.database)[0]
    assert attempts.claim(domain.database, ring.stage_id, ring.epoch, WORKER) is None
    assert attempts.claim(domain.database, "stage-of-nobody", 0, WORKER) is None


def test_a_stale_epoch_changes_nothing(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    old = domain.claim()
    assert attempts.expire(domain.database, old.stage_id, old.epoch, 0)
    new = domain.claim()
    before = domain.view(job_id)
    assert attempts.heartbeat(domain.database, old.stage_id, old.epoch, 1, 2) == Beat(alive=False, cancel=True)
    assert not attempts.record_message(domain.database, old.stage_id, old.epoch, "info", "I still live.")
    assert not domain.finish(old)
    assert not attempts.fail(domain.database, old.stage_id, old.epoch, "late", "late", True)
    assert not attempts.release(domain.database, old.stage_id, old.epoch)
    assert not attempts.confirm_cancelled(domain.database, old.stage_id, old.epoch)
    assert not attempts.expire(domain.database, old.stage_id, old.epoch, 0)
    after = domain.view(job_id)
    assert [stage.status for stage in after.stages] == [stage.status for stage in before.stages]
    assert after.job.event_count == before.job.event_count
    assert domain.finish(new)


def test_a_result_is_committed_once(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    assert domain.finish(claimed)
    assert not domain.finish(claimed)
    assert len(domain.view(job_id).artifacts) == 1


def test_a_heartbeat_carries_progress_and_brings_back_a_cancel(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    metrics = {"loss": 0.5, "grad": math.nan, "rate": -math.inf}
    beat = attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch, 3, 40, metrics)
    assert beat == Beat(alive=True, cancel=False)
    stage = stage_by_name(domain, job_id, "sft")
    assert (stage.step, stage.total, stage.beat) == (3, 40, 1)
    assert stage.metrics == {"loss": 0.5, "grad": None, "rate": None}
    service.cancel(domain.database, OWNER, job_id)
    assert attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch) == Beat(alive=True, cancel=True)


def test_messages_survive_what_a_database_cannot_hold(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    assert attempts.record_message(
        domain.database, claimed.stage_id, claimed.epoch, "warn", "NUL \0, half \ud800", {"x": math.nan, "\0": "\udfff"}
    )
    event = domain.events(job_id)[-1]
    assert event.message == "NUL �, half ?"
    assert event.data == {"stage": "sft", "x": None, "�": "?"}


def test_cancelling_a_queued_job_ends_it_at_once(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    assert service.cancel(domain.database, OWNER, job_id).job.status == "cancelled"
    assert set(domain.statuses(job_id).values()) == {"cancelled"}
    assert dispatch.ready_stages(domain.database) == ()
    assert service.cancel(domain.database, OWNER, job_id).job.status == "cancelled"


def test_cancelling_a_dispatched_stage_takes_it_from_whoever_was_rung(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    stage_id, epoch = domain.dispatch()
    service.cancel(domain.database, OWNER, job_id)
    assert attempts.claim(domain.database, stage_id, epoch, WORKER) is None


def test_cancelling_a_running_job_waits_for_its_stage_to_stop(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    view = service.cancel(domain.database, OWNER, job_id)
    assert (view.job.status, view.job.cancel_requested) == ("running", True)
    assert domain.statuses(job_id) == {"sft": "running", "evaluate": "cancelled"}
    assert attempts.confirm_cancelled(domain.database, claimed.stage_id, claimed.epoch)
    assert domain.view(job_id).job.status == "cancelled"
    assert in_order(domain.events(job_id))


@pytest.mark.parametrize("ending", ["finish", "fail", "release", "expire"])
def test_a_cancelled_job_ends_whatever_its_stage_does(domain: Domain, ending: str) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    service.cancel(domain.database, OWNER, job_id)
    stage = claimed.stage_id, claimed.epoch
    endings = {
        "finish": lambda: domain.finish(claimed),
        "fail": lambda: attempts.fail(domain.database, *stage, "crashed", "It crashed.", True),
        "release": lambda: attempts.release(domain.database, *stage),
        "expire": lambda: attempts.expire(domain.database, *stage, 0),
    }
    assert endings[ending]()
    assert domain.view(job_id).job.status == "cancelled"
    assert dispatch.ready_stages(domain.database) == ()


def test_an_ended_job_cannot_be_cancelled(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    domain.run_all()
    with pytest.raises(Conflict, match="succeeded"):
        service.cancel(domain.database, OWNER, job_id)


def test_three_counted_attempts_and_then_the_job_has_failed(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    domain.fail_thrice()
    view = domain.view(job_id)
    assert view.job.status == "failed"
    assert view.job.error == {"code": "crashed", "message": "It crashed.", "param": None, "stage": "sft"}
    assert domain.statuses(job_id) == {"sft": "failed", "evaluate": "cancelled"}


def test_a_failure_that_would_come_again_is_not_tried_again(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    assert attempts.fail(domain.database, claimed.stage_id, claimed.epoch, "no_pairs", "Sample more.", False)
    assert domain.view(job_id).job.status == "failed"


def test_a_drained_attempt_does_not_count(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    for _ in range(5):
        claimed = domain.claim()
        assert claimed.attempt == 1
        assert attempts.release(domain.database, claimed.stage_id, claimed.epoch)


def test_a_lost_lease_counts_and_a_beat_keeps_it(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    claimed = domain.claim()
    attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch)
    (lease,) = dispatch.running_stages(domain.database)
    assert (lease.stage_id, lease.epoch, lease.beat) == (claimed.stage_id, claimed.epoch, 1)
    assert not attempts.expire(domain.database, claimed.stage_id, claimed.epoch, 0)
    assert attempts.expire(domain.database, claimed.stage_id, claimed.epoch, 1)
    assert domain.claim().attempt == 2


def test_when_one_stage_fails_its_running_siblings_are_told_to_stop(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    for _ in range(2):
        domain.finish(domain.claim())
    warmup, reward_model = domain.claim(), domain.claim()
    assert attempts.fail(domain.database, warmup.stage_id, warmup.epoch, "diverged", "Lower the rate.", False)
    assert domain.view(job_id).job.status == "failed"
    assert attempts.heartbeat(domain.database, reward_model.stage_id, reward_model.epoch).cancel
    with pytest.raises(Conflict, match="still stopping"):
        service.retry(domain.database, domain.store, OWNER, job_id)
    assert attempts.confirm_cancelled(domain.database, reward_model.stage_id, reward_model.epoch)
    assert domain.view(job_id).job.status == "failed"


def test_a_retried_job_goes_on_from_where_it_failed(domain: Domain) -> None:
    job_id = domain.submit(ALLO).job.id
    domain.finish(domain.claim())
    domain.fail_thrice()
    assert service.retry(domain.database, domain.store, OWNER, job_id).job.status == "queued"
    assert domain.run_all()[0] == "pair"
    assert domain.view(job_id).job.status == "succeeded"
    assert in_order(domain.events(job_id))
    with pytest.raises(Conflict, match="only a failed or cancelled"):
        service.retry(domain.database, domain.store, OWNER, job_id)


def test_a_stage_may_be_rung_for_again_until_it_is_claimed(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    stage_id, epoch = domain.dispatch()
    assert [placed.stage.stage_id for placed in dispatch.dispatched_stages(domain.database)] == [stage_id]
    assert dispatch.place(domain.database, domain.store, stage_id, epoch, WORKER)
    assert attempts.claim(domain.database, stage_id, epoch, WORKER) is not None
    assert not dispatch.place(domain.database, domain.store, stage_id, epoch, WORKER)


def test_another_owners_job_is_as_absent_as_one_that_never_was(domain: Domain) -> None:
    job_id = domain.submit(SUPERVISED).job.id
    domain.finish(domain.claim())
    artifact_id = domain.view(job_id).artifacts[0].id
    for wrong in (job_id, "ftjob-never"):
        with pytest.raises(NotFound):
            service.read(domain.database, "stranger", wrong)
        with pytest.raises(NotFound):
            service.cancel(domain.database, "stranger", wrong)
        with pytest.raises(NotFound):
            service.retry(domain.database, domain.store, "stranger", wrong)
        with pytest.raises(NotFound):
            service.read_events(domain.database, "stranger", wrong, Page())
    with pytest.raises(NotFound):
        service.read_artifact(domain.database, "stranger", artifact_id)
    assert service.read_page(domain.database, "stranger", Page()) == ([], False)


def test_pages_follow_each_other_without_loss_or_repetition(domain: Domain) -> None:
    made = [domain.submit(SUPERVISED).job.id for _ in range(5)]
    seen, page, more = [], Page(limit=2), True
    while more:
        views, more = service.read_page(domain.database, OWNER, page)
        seen += [view.job.id for view in views]
        page = Page(limit=2, after=seen[-1])
    assert seen == made[::-1]
    job_id, after, numbers = made[0], None, []
    domain.run_all()
    while True:
        events, more = service.read_events(domain.database, OWNER, job_id, Page(2, after, "asc"))
        numbers += [event.seq for event in events]
        if not more:
            break
        after = events[-1].id
    assert numbers == list(range(1, len(numbers) + 1))
