"""What is read is never out of date, though it is rendered once; and a list costs a few queries, however long."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Barrier
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

from service.db import Database
from service.jobs import service
from service.jobs.access.keys import MOST_UNKNOWN, KeyRing, create_key, revoke_key
from service.jobs.repository import Page
from tests import asking
from tests.integration.service.domain import OWNER, SUPERVISED, Domain
from tests.waiting import PATIENCE


def test_a_version_changes_with_every_commit_and_with_nothing_else(database: Database, domain: Domain) -> None:
    before = database.version()
    domain.view(domain.submit(SUPERVISED).job.id)
    submitted = database.version()
    assert submitted != before
    with database.snapshot():
        pass
    assert database.version() == submitted
    domain.claim()
    assert database.version() != submitted


def test_a_poll_shows_each_change_at_once(base_url: str, served: Domain, secret: str) -> None:
    job = served.submit(SUPERVISED).job.id
    with httpx.Client(headers={"authorization": f"Bearer {secret}"}, timeout=PATIENCE) as client:

        def shown() -> Any:
            return client.get(f"{base_url}/fine_tuning/jobs/{job}").json()

        assert [stage["status"] for stage in shown()["stages"]] == ["ready", "waiting"]
        claimed = served.claim()
        assert [stage["status"] for stage in shown()["stages"]] == ["running", "waiting"]
        assert served.finish(claimed)
        first, second = shown(), shown()
        assert first == second
        assert [stage["status"] for stage in first["stages"]] == ["succeeded", "ready"]
        assert first["stages"][0]["artifacts"]


def test_one_owner_never_sees_what_was_kept_for_another(base_url: str, served: Domain, secret: str) -> None:
    job, stranger = served.submit(SUPERVISED).job.id, create_key(served.database, "stranger").secret
    url = f"{base_url}/fine_tuning/jobs/{job}"
    assert asking.get(url, headers={"authorization": f"Bearer {secret}"}).status_code == 200
    assert asking.get(url, headers={"authorization": f"Bearer {stranger}"}).status_code == 404


def test_a_list_has_the_stages_without_their_files_and_attempts(base_url: str, served: Domain, secret: str) -> None:
    job = served.submit(SUPERVISED).job.id
    served.run_all()
    headers = {"authorization": f"Bearer {secret}"}
    listed = asking.get(f"{base_url}/fine_tuning/jobs", headers=headers).json()["data"][0]
    whole = asking.get(f"{base_url}/fine_tuning/jobs/{job}", headers=headers).json()
    assert all(stage.pop("artifacts") and stage.pop("attempts") for stage in whole["stages"])
    assert listed == whole


def test_a_list_asks_the_database_as_often_for_many_jobs_as_for_few(domain: Domain) -> None:
    asked: list[str] = []
    event.listen(domain.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    counts = []
    for seed in range(6):
        domain.submit(replace(SUPERVISED, seed=seed))
        asked.clear()
        service.read_page(domain.database, OWNER, Page(100))
        counts.append(len(asked))
    assert len(set(counts)) == 1


def test_a_job_is_estimated_by_what_the_same_took_before(domain: Domain) -> None:
    domain.submit(SUPERVISED)
    domain.run_all()
    again = domain.submit(replace(SUPERVISED, seed=1)).job.id
    assert set(domain.view(again).earlier_seconds) == {"sft", "evaluate"}
    views, _ = service.read_page(domain.database, OWNER, Page(100))
    assert {view.job.id: set(view.earlier_seconds) for view in views}[again] == {"sft", "evaluate"}


def test_a_key_that_many_connections_send_at_once_is_looked_up_once(base_url: str, served: Domain, secret: str) -> None:
    asked: list[str] = []

    def note(*given: Any) -> None:
        if "FROM api_keys" in given[2]:
            asked.append(given[2])
            time.sleep(0.5)  # for so long the others come

    event.listen(served.database.engine, "before_cursor_execute", note)
    headers = {"authorization": f"Bearer {secret}"}
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(asking.get, f"{base_url}/fine_tuning/jobs", headers=headers) for _ in range(8)]
    assert {answer.result().status_code for answer in answers} == {200}
    assert len(asked) < 4, "one, but on a machine that keeps some waiting for seconds"


def test_requests_of_several_event_loops_wait_for_their_own_look_at_the_key(
    app: FastAPI, served: Domain, secret: str
) -> None:
    together = Barrier(3)

    def wait(*given: Any) -> None:
        if "FROM api_keys" in given[2]:
            together.wait(60)

    event.listen(served.database.engine, "before_cursor_execute", wait)
    asked = partial(TestClient(app, headers={"authorization": f"Bearer {secret}"}).get, "/v1/fine_tuning/jobs")
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(asked) for _ in range(3)]
    assert {answer.result().status_code for answer in answers} == {200}


@pytest.fixture
def ring(database: Database) -> KeyRing:
    return KeyRing(database, seconds=2, clock=lambda: CLOCK[0])


CLOCK = [0.0]


def test_a_revoked_key_opens_nothing_after_two_seconds(database: Database, ring: KeyRing) -> None:
    made = create_key(database, "owner")
    assert ring.known(made.secret) is None
    assert ring.find(made.secret)
    assert ring.known(made.secret)
    revoke_key(database, made.id)
    CLOCK[0] += 2
    assert ring.known(made.secret) is None
    assert ring.find(made.secret) is None


def test_what_is_no_key_is_looked_up_once_in_two_seconds_and_a_bounded_number_is_remembered(
    database: Database, ring: KeyRing
) -> None:
    assert not ring.is_unknown("nonsense")
    assert ring.find("nonsense") is None
    assert ring.is_unknown("nonsense")
    for number in range(MOST_UNKNOWN + 10):
        ring.find(f"other {number}")
    assert sum(ring.is_unknown(f"other {number}") for number in range(MOST_UNKNOWN + 10)) == MOST_UNKNOWN - 1
    assert ring.find(create_key(database, "owner").secret)
    CLOCK[0] += 2
    assert not ring.is_unknown("nonsense")
