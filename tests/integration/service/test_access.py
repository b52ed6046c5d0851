"""Keys over HTTP (OWASP API5:2023), limits of requests (API4:2023), and the log of who did what."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI

from service.api.audited import CHANGING
from service.app import create_app
from service.jobs.access import audit
from service.jobs.access.keys import create_key
from service.jobs.repository import Page
from service.jobs.tables import AuditEntry
from service.settings import Settings
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import Domain, furnish
from tests.integration.service.routes import every_route

KEYS, JOBS = "/v1/keys", "/v1/fine_tuning/jobs"


@pytest.fixture
def client(app: FastAPI, secret: str) -> TestClient:
    return client_of(app, secret)


def client_of(app: FastAPI, secret: str) -> TestClient:
    return TestClient(app, headers={"authorization": f"Bearer {secret}"})


def entries(domain: Domain, **which: str) -> list[AuditEntry]:
    return audit.read_page(domain.database, Page(100, order="asc"), **which)[0]


def test_a_key_is_made_listed_rotated_and_revoked_and_its_secret_is_shown_once(
    app: FastAPI, client: TestClient
) -> None:
    made = client.post(KEYS, json={"owner": "alice", "scopes": ["read"]}).json()
    assert (made["owner"], made["scopes"], made["status"], made["expires_at"]) == ("alice", ["read"], "valid", None)
    alice = client_of(app, made["secret"])
    assert alice.get(JOBS).status_code == 200
    rotated = client.post(f"{KEYS}/{made['id']}/rotate").json()
    assert rotated["id"] == made["id"]
    assert alice.get(JOBS).status_code == 401, "the old secret"
    assert client_of(app, rotated["secret"]).get(JOBS).status_code == 200
    listed = client.get(KEYS, params={"owner": "alice"}).json()["data"]
    assert [(row["id"], row["status"]) for row in listed] == [(made["id"], "valid")]
    assert rotated["secret"] not in client.get(KEYS).text + client.get(f"{KEYS}/{made['id']}").text
    for _ in range(2):
        assert client.delete(f"{KEYS}/{made['id']}").json()["deleted"]
    assert client_of(app, rotated["secret"]).get(JOBS).status_code == 401
    assert client.get(f"{KEYS}/{made['id']}").json()["status"] == "revoked"
    assert client.post(f"{KEYS}/{made['id']}/rotate").status_code == 409


def test_keys_page(client: TestClient) -> None:
    made = [client.post(KEYS, json={"owner": "alice"}).json()["id"] for _ in range(3)]
    first = client.get(KEYS, params={"owner": "alice", "limit": 2}).json()
    assert ([row["id"] for row in first["data"]], first["has_more"]) == (made[:0:-1], True)
    rest = client.get(KEYS, params={"owner": "alice", "after": first["last_id"]}).json()
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (made[:1], False)
    for path in (KEYS, "/v1/audit"):
        assert client.get(path, params={"after": "zzz"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "owner"),
        ({"owner": "A B"}, "owner"),
        ({"owner": "a", "scopes": []}, "scopes"),
        ({"owner": "a", "scopes": ["root"]}, "scopes"),
        ({"owner": "a", "expires_at": 1}, "expires_at"),
        ({"owner": "a", "expires_at": 10**30}, "expires_at"),
        ({"owner": "a", "days": 3}, "days"),
    ],
)
def test_a_key_that_cannot_be_is_refused(client: TestClient, body: dict[str, Any], param: str) -> None:
    answer = client.post(KEYS, json=body)
    assert answer.status_code == 422
    assert param in answer.json()["error"]["param"]


def test_only_admins_see_keys_and_the_audit_log(app: FastAPI, served: Domain) -> None:
    other = client_of(app, create_key(served.database, "owner", ("read", "submit", "metrics")).secret)
    for found in every_route(app):
        if found.path.startswith((KEYS, "/v1/audit")):
            answer = other.request(found.method, found.at(), json={"owner": "x"} if found.path == KEYS else None)
            assert answer.status_code == 403, found


@pytest.mark.parametrize("verb", ["create", "rotate"])
@pytest.mark.parametrize("mark", ["the client's word", "an Idempotency-Key"])
def test_a_key_whose_secret_got_lost_is_one_key_with_another_secret(
    app: FastAPI, client: TestClient, verb: str, mark: str
) -> None:
    path, body = KEYS, {"owner": "alice"}
    if verb == "rotate":
        path = f"{KEYS}/{client.post(KEYS, json=body).json()['id']}/rotate"
    marks = [{"x-stainless-retry-count": str(count)} for count in range(3)]
    headers = marks if mark == "the client's word" else [{"Idempotency-Key": "k"}] * 3
    answers = [client.post(path, json=body, headers=mark).json() for mark in headers]
    assert len({answer["id"] for answer in answers}) == 1
    assert len(client.get(KEYS, params=body).json()["data"]) == 1
    opened = [client_of(app, answer["secret"]).get(JOBS).status_code for answer in answers]
    assert opened == [401, 401, 200]


def test_whatever_changes_something_is_in_the_audit_log_with_who_asked(client: TestClient, served: Domain) -> None:
    made = client.post(JOBS, json={"model": "tiny", "training_file": "file-train"})
    job = made.json()["id"]
    gone = client.delete("/v1/files/file-none")
    client.post(f"{JOBS}/{job}/cancel")
    client.get(JOBS)
    client.put(JOBS)
    found = entries(served)
    assert [(entry.verb, entry.object_id, entry.status) for entry in found] == [
        ("jobs.create", job, 200),
        ("files.delete", "file-none", 404),
        ("jobs.cancel", job, 200),
    ]
    assert {(entry.owner, entry.address) for entry in found} == {("owner", "testclient")}
    assert [entry.request_id for entry in found[:2]] == [answer.headers["x-request-id"] for answer in (made, gone)]
    listed = client.get("/v1/audit", params={"object": job}).json()
    assert [entry["verb"] for entry in listed["data"]] == ["jobs.cancel", "jobs.create"]
    assert client.get("/v1/audit", params={"owner": "nobody"}).json()["data"] == []


def test_an_upload_is_in_the_audit_log_and_a_bad_one_with_its_refusal(client: TestClient, served: Domain) -> None:
    def upload(content: bytes) -> Any:
        return client.post("/v1/files", files={"file": ("f.jsonl", content)}, data={"purpose": "fine-tune"}).json()

    good = upload(b'{"problem": "p", "solution": "s"}')["id"]
    bad = upload(b"{}")["error"]["file_id"]
    found = [(entry.verb, entry.object_id, entry.status) for entry in entries(served)]
    assert found == [("files.create", good, 200), ("files.create", bad, 200), ("files.create", None, 422)]


def test_a_repetition_is_in_the_audit_log_too(client: TestClient, served: Domain) -> None:
    for count in (0, 1):
        client.delete("/v1/files/file-train", headers={"x-stainless-retry-count": str(count)})
    found = [(entry.verb, entry.object_id, entry.status) for entry in entries(served)]
    assert found == [("files.delete", "file-train", 200)] * 2


def test_a_refusal_for_want_of_scope_is_in_the_audit_log(app: FastAPI, served: Domain) -> None:
    made = create_key(served.database, "alice", ("read",))
    client_of(app, made.secret).delete("/v1/models/tiny")
    (entry,) = entries(served, owner="alice")
    assert (entry.key_id, entry.verb, entry.object_id, entry.status) == (made.id, "models.delete", "tiny", 403)


def test_every_changing_route_leaves_an_entry(app: FastAPI, client: TestClient, served: Domain) -> None:
    routes = [found for found in every_route(app) if found.method in CHANGING]
    for found in routes:
        client.request(found.method, found.at())
    assert len(entries(served)) == len(routes)


def test_no_secret_is_in_the_audit_log(client: TestClient, served: Domain) -> None:
    secret = client.post(KEYS, json={"owner": "alice"}).json()["secret"]
    client.delete(f"{KEYS}/{secret}")
    text = str([vars(entry) for entry in entries(served)])
    assert secret not in text
    assert "keys.revoke" in text


def test_nobody_writes_an_entry_that_is_not_theirs(client: TestClient, served: Domain) -> None:
    client.delete("/v1/files/a%0d%0aforged%1b%5b2J%c2%9b%e2%80%ae", headers={"x-forwarded-for": "\x1b[2J"})
    (entry,) = entries(served)
    assert (entry.verb, entry.owner) == ("files.delete", "owner")
    assert f"{entry.object_id}{entry.address}".isprintable()


def test_old_entries_are_forgotten(served: Domain) -> None:
    deed = audit.Deed("key", "owner", None, "jobs.create", "ftjob-1", 200, "req-1")
    for _ in range(3):
        audit.record(served.database, deed, keep_seconds=-10)
    assert len(entries(served)) == 1


@pytest.fixture
def limited(tmp_path: Path, sqlite: Path) -> Iterator[FastAPI]:
    """An app of which an owner may ask three things a minute."""
    shutil.copyfile(sqlite, tmp_path / "allo.db")
    app = create_app(Settings(data_dir=tmp_path, requests_per_minute=3), SilentBroker())
    furnish(app.state.context.database, app.state.context.store)
    yield app
    app.state.context.database.close()


def test_an_owner_that_asks_too_often_is_told_when_to_come_again(limited: FastAPI) -> None:
    database = limited.state.context.database
    mine = [client_of(limited, create_key(database, "owner", ("read",)).secret) for _ in range(2)]
    other = client_of(limited, create_key(database, "alice", ("read",)).secret)
    answers = [mine[number % 2].get(JOBS) for number in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert answers[3].json()["error"]["type"] == "rate_limit_error"
    assert other.get(JOBS).status_code == 200
    assert "x-ratelimit-limit-requests" not in TestClient(limited).get("/healthz").headers


def test_an_owner_has_so_many_requests_open_and_leaves_connections_to_others(tmp_path: Path, sqlite: Path) -> None:
    shutil.copyfile(sqlite, tmp_path / "allo.db")
    app = create_app(Settings(data_dir=tmp_path, max_owner_requests=3), SilentBroker())
    database = app.state.context.database
    furnish(database, app.state.context.store)
    mine, other = (client_of(app, create_key(database, owner, ("read",)).secret) for owner in ("owner", "alice"))
    going_on, begun = threading.Event(), threading.Semaphore(0)

    @app.get("/v1/long")
    def long() -> None:
        begun.release()
        going_on.wait(120)

    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(mine.get, "/v1/long") for _ in range(3)]
        for _ in answers:
            assert begun.acquire(timeout=60)
        refused = mine.get(JOBS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "retry-after" in refused.headers
        assert other.get(JOBS).status_code == 200
        going_on.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert mine.get(JOBS).status_code == 200
    app.state.context.close()


def test_the_openai_client_knows_the_limit_for_one(base_url: str, served: Domain, app: FastAPI) -> None:
    secret = create_key(served.database, "alice", ("read",)).secret
    with OpenAI(base_url=base_url, api_key=secret, max_retries=0) as client:
        raw = client.fine_tuning.jobs.with_raw_response.list()
        assert int(raw.headers["x-ratelimit-remaining-requests"]) > 0
        with pytest.raises(openai.PermissionDeniedError):
            client.files.delete("file-train")
