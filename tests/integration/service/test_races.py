"""Many at once, on both databases: one wins, and nothing is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

from service.jobs import service
from service.jobs.running import attempts, dispatch
from tests.integration.service.domain import ALLO, OWNER, SUPERVISED, WORKER, Domain, in_order

THREADS = 12


def test_of_many_that_claim_one_wins(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    stage_id, epoch = domain.dispatch()
    start = Barrier(THREADS)

    def claim(_: int) -> bool:
        start.wait()
        return attempts.claim(domain.database, stage_id, epoch, WORKER) is not None

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(claim, range(THREADS))) == 1


def test_of_a_finish_an_expiry_and_a_cancel_at_once_the_job_ends_once(domain: Domain) -> None:
    for seed in range(5):
        job_id = domain.submit(replace(SUPERVISED, seed=seed)).job.id
        claimed = domain.claim()
        verbs = [
            lambda c=claimed: domain.finish(c),
            lambda c=claimed: attempts.expire(domain.database, c.stage_id, c.epoch, 0),
            lambda j=job_id: service.cancel(domain.database, OWNER, j),
        ]
        with ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(verb) for verb in verbs]:
                future.result()
        assert domain.view(job_id).job.status == "cancelled"
        assert in_order(domain.events(job_id))


def test_a_crowd_of_workers_runs_every_stage_once(domain: Domain) -> None:
    jobs = [domain.submit(ALLO).job.id for _ in range(3)]

    def work(_: int) -> int:
        done = 0
        for _ in range(60):
            for ring in dispatch.ready_stages(domain.database):
                dispatch.place(domain.database, domain.store, ring.stage_id, ring.epoch, WORKER)
                claimed = attempts.claim(domain.database, ring.stage_id, ring.epoch, WORKER)
                if claimed is not None:
                    attempts.heartbeat(domain.database, claimed.stage_id, claimed.epoch, 1, 1)
                    done += domain.finish(claimed)
            if all(domain.view(job_id).job.status == "succeeded" for job_id in jobs):
                break
        return done

    with ThreadPoolExecutor(4) as pool:
        computed = sum(pool.map(work, range(4)))
    for job_id in jobs:
        view = domain.view(job_id)
        assert view.job.status == "succeeded"
        assert len(view.artifacts) == 12
        assert in_order(domain.events(job_id))
    assert 9 <= computed <= 27
