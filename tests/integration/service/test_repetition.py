"""A request that is sent again, on both databases: what it changes is changed once, whenever the first try ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from service.db import Database
from service.jobs import service
from service.jobs.access.repetition import Call, once
from service.jobs.data.files import delete_file
from service.jobs.errors import Conflict, InvalidRequest, NotFound, TooMany
from service.jobs.repository import Page
from service.jobs.tables import Event, PastCall
from tests.integration.service.domain import OWNER, SUPERVISED, Domain

SUBMIT = Call("key", "a submit")
AGAIN = replace(SUBMIT, is_retry=True)


def submit(domain: Domain, call: Call) -> str:
    answer = once(domain.database, call, lambda: {"id": domain.submit(SUPERVISED).job.id})
    return str(answer["id"])


def delete(domain: Domain, call: Call, file_id: str = "file-train") -> Any:
    def do() -> dict[str, Any]:
        delete_file(domain.database, OWNER, file_id)
        return {"id": file_id, "deleted": True}

    return once(domain.database, call, do)


def change(domain: Domain, verb: str, job_id: str, is_retry: bool = False) -> str:
    call = Call("key", f"{verb} {job_id}", subject=job_id, is_retry=is_retry)

    def do() -> dict[str, Any]:
        if verb == "retry":
            return {"status": service.retry(domain.database, domain.store, OWNER, job_id).job.status}
        return {"status": service.cancel(domain.database, OWNER, job_id).job.status}

    return str(once(domain.database, call, do)["status"])


def count(domain: Domain) -> int:
    return len(service.read_page(domain.database, OWNER, Page(1000))[0])


def test_a_clients_own_retry_is_the_same_job_and_a_second_request_is_not(domain: Domain) -> None:
    first = submit(domain, SUBMIT)
    assert submit(domain, AGAIN) == first
    second = submit(domain, SUBMIT)
    assert second != first
    assert submit(domain, AGAIN) == second
    assert submit(domain, replace(AGAIN, fingerprint="another submit")) not in (first, second)


def test_a_retry_of_what_never_arrived_is_done(domain: Domain) -> None:
    assert submit(domain, AGAIN) == submit(domain, AGAIN)
    assert count(domain) == 1


def test_an_idempotency_key_makes_one_job(domain: Domain) -> None:
    keyed = replace(SUBMIT, idempotency_key="abc")
    assert submit(domain, keyed) == submit(domain, keyed)
    with pytest.raises(InvalidRequest, match="another request"):
        submit(domain, replace(keyed, fingerprint="another"))
    domain.add_key("key-2", "stranger")
    assert submit(domain, replace(keyed, key_id="key-2")) != submit(domain, keyed)


def test_many_that_come_at_once_with_one_idempotency_key_make_one_job(domain: Domain) -> None:
    keyed = replace(SUBMIT, idempotency_key="abc")
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: submit(domain, keyed), range(16)))
    assert len(set(jobs)) == 1
    assert count(domain) == 1


def test_an_owners_limit_holds_whichever_of_its_keys_comes_at_once(domain: Domain) -> None:
    domain.add_key("key-2", OWNER)
    sender = domain.sender(max_active_jobs=1)

    def try_it(number: int) -> bool:
        call = Call(f"key{'-2' * (number % 2)}", f"submit {number}")
        try:
            once(domain.database, call, lambda: {"id": domain.submit(SUPERVISED, sender).job.id})
        except TooMany:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_it, range(16))) == 1


def test_a_repetition_after_its_window_is_a_new_request_and_the_old_is_forgotten(
    domain: Domain, database_url: str
) -> None:
    now = [1_000.0]
    domain.database = Database(database_url, clock=lambda: now[0])
    keyed = replace(AGAIN, idempotency_key="abc")
    first, with_key = submit(domain, AGAIN), submit(domain, keyed)
    now[0] += AGAIN.retry_window + 1
    assert submit(domain, AGAIN) != first
    assert submit(domain, keyed) == with_key
    now[0] += keyed.key_window + 1
    assert submit(domain, keyed) != with_key
    with domain.database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(PastCall)) == 1
    domain.database.close()


def test_what_is_gone_was_deleted_by_whoever_asks_again_and_is_absent_to_all_others(domain: Domain) -> None:
    domain.add_key("key-2", OWNER)
    call = Call("key", "delete it", subject="file-train")
    assert delete(domain, call) == delete(domain, replace(call, is_retry=True)) == {"id": "file-train", "deleted": True}
    for other in (call, replace(call, is_retry=True, key_id="key-2"), replace(call, is_retry=True, fingerprint="x")):
        with pytest.raises(NotFound):
            delete(domain, other)


def test_a_refusal_leaves_nothing_to_remember(domain: Domain) -> None:
    call = Call("key", "delete it", subject="file-none", is_retry=True)
    for _ in range(2):
        with pytest.raises(NotFound):
            delete(domain, call, "file-none")


def test_a_change_is_remembered_until_the_next_change_of_the_same_thing(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    change(domain, "cancel", job)
    assert change(domain, "retry", job) == "queued"
    assert change(domain, "retry", job, is_retry=True) == "queued"
    assert change(domain, "cancel", job) == "cancelled"
    assert change(domain, "retry", job, is_retry=True) == "queued", "it is another retry, whose first try got lost"
    domain.run_all()
    with pytest.raises(Conflict):
        change(domain, "cancel", job, is_retry=True)


def test_a_repeated_retry_changes_nothing(domain: Domain) -> None:
    job = domain.submit(SUPERVISED).job.id
    change(domain, "cancel", job)
    change(domain, "retry", job)
    events = len(domain.events(job))
    change(domain, "retry", job, is_retry=True)
    assert len(domain.events(job)) == events


def test_what_is_done_and_what_is_remembered_of_it_are_one_transaction(domain: Domain) -> None:
    def done() -> dict[str, Any]:
        return {"id": domain.submit(SUPERVISED).job.id}

    def killed(*_: object) -> Any:
        done()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(domain.database, SUBMIT, killed)
    with pytest.raises(KeyboardInterrupt):  # between the two
        once(domain.database, replace(SUBMIT, note=killed), done)
    with domain.database.snapshot() as session:
        assert session.scalar(select(func.count()).select_from(Event)) == 0
    assert count(domain) == 0


def test_a_secret_is_not_kept_and_a_repetition_gets_a_new_one(domain: Domain) -> None:
    again = replace(SUBMIT, is_retry=True)
    made = once(domain.database, again, lambda: {"id": "key-1", "secret": "canary"})
    assert made["secret"] == "canary"
    with domain.database.snapshot() as session:
        assert session.scalars(select(PastCall.answer)).all() == [{"id": "key-1"}]
    repeated = once(domain.database, again, dict, reissue=lambda kept: {**kept, "secret": "new"})
    assert repeated == {"id": "key-1", "secret": "new"}
