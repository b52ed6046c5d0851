"""Priority of jobs, on both databases: who may set it, and in what order the dispatcher sees what waits."""

from __future__ import annotations

import dataclasses

import httpx
import pytest
from sqlalchemy import update

from service.jobs import service
from service.jobs.access.keys import create_key
from service.jobs.errors import Conflict, Forbidden, NotFound
from service.jobs.lifecycle import Priority
from service.jobs.progression import line_of
from service.jobs.running import attempts, dispatch
from service.jobs.tables import Job, Stage
from tests.integration.service.domain import OWNER, SUPERVISED, WORKER, Domain, in_order


def with_priority(priority: Priority, seed: int = 0):
    return dataclasses.replace(SUPERVISED, priority=priority, seed=seed)


def test_what_waits_and_what_is_under_way_says_whose_it_is_and_how_it_stands(domain: Domain) -> None:
    domain.submit(with_priority(Priority.LOW))
    (ready,) = dispatch.ready_stages(domain.database)
    assert (ready.owner, ready.priority) == (OWNER, Priority.LOW)
    domain.dispatch()
    (placed,) = dispatch.dispatched_stages(domain.database)
    assert placed.stage == ready
    assert attempts.claim(domain.database, ready.stage_id, ready.epoch, WORKER)
    (running,) = dispatch.running_stages(domain.database)
    assert running.owner == OWNER


def test_of_equal_results_the_one_of_the_highest_priority_is_computed(domain: Domain) -> None:
    domain.submit(with_priority(Priority.LOW))
    urgent = domain.submit(with_priority(Priority.HIGH), domain.sender(admin=True))
    (ready,) = dispatch.ready_stages(domain.database)
    assert ready.stage_id == urgent.stages[0].id


def test_of_a_long_line_a_part_is_read_and_nothing_else_is_hidden_behind_it(domain: Domain) -> None:
    line = [domain.submit(with_priority(Priority.NORMAL, seed)).stages[0].id for seed in range(4)]
    other = domain.submit(with_priority(Priority.LOW, 4)).stages[0].id
    special = domain.submit(with_priority(Priority.NORMAL, 5))
    with domain.database.transaction() as session:
        stage = session.get_one(Stage, special.stages[0].id)
        stage.needs = {"packages": ["vllm"]}
        stage.line = line_of(special.job, stage)
    ready = [stage.stage_id for stage in dispatch.ready_stages(domain.database, 2)]
    assert ready == [*line[:2], other, special.stages[0].id]


def test_what_changes_its_priority_changes_its_line_and_what_stands_in_none_is_seen(domain: Domain) -> None:
    """An older process readies stages without a line, while a service is upgraded."""
    line = [domain.submit(with_priority(Priority.NORMAL, seed)) for seed in range(3)]
    service.prioritise(domain.database, OWNER, line[1].job.id, Priority.LOW, False)
    assert len(dispatch.ready_stages(domain.database, 1)) == 2
    with domain.database.transaction() as session:
        session.execute(update(Stage).where(Stage.job_id == line[2].job.id).values(line=None))
    ready = [stage.stage_id for stage in dispatch.ready_stages(domain.database, 1)]
    assert ready == [job.stages[0].id for job in line]


def test_a_high_priority_takes_an_admins_key(domain: Domain) -> None:
    with pytest.raises(Forbidden, match="take normal or low"):
        domain.submit(with_priority(Priority.HIGH))
    job = domain.submit(with_priority(Priority.LOW)).job.id
    change = lambda priority, admin: service.prioritise(domain.database, OWNER, job, priority, admin).job  # noqa: E731
    with pytest.raises(Forbidden):
        change(Priority.HIGH, False)
    assert change(Priority.NORMAL, False).priority == Priority.NORMAL
    events = len(domain.events(job))
    assert change(Priority.NORMAL, False).event_count == events, "it changed nothing"
    assert change(Priority.HIGH, True).priority == Priority.HIGH
    assert domain.events(job)[-1].message == "The job's priority is high now."
    assert in_order(domain.events(job))
    with pytest.raises(NotFound):
        service.prioritise(domain.database, "stranger", job, Priority.LOW, True)
    service.cancel(domain.database, OWNER, job)
    with pytest.raises(Conflict, match="already cancelled"):
        change(Priority.LOW, True)


def test_a_job_made_before_there_were_priorities_is_a_normal_one(domain: Domain) -> None:
    assert Job.__table__.c.priority.server_default.arg == str(int(Priority.NORMAL))


def test_the_api_takes_shows_and_changes_it(http: httpx.Client, served: Domain) -> None:
    body = {"model": "tiny", "training_file": "file-train", "priority": "high"}
    jobs = str(http.base_url).rstrip("/")
    job = http.post(jobs, json=body).json()
    assert job["priority"] == "high"
    assert http.post(f"{job['id']}/priority", json={"priority": "low"}).json()["priority"] == "low"
    assert http.post(f"{job['id']}/priority", json={"priority": "urgent"}).status_code == 422
    key = create_key(served.database, OWNER, ("submit",)).secret
    refused = http.post(jobs, json=body, headers={"authorization": f"Bearer {key}"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "priority")
