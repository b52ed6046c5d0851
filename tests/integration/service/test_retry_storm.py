"""Every POST and DELETE that there is, its answer lost and sent again and again: the second time changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai import OpenAI
from sqlalchemy import select

from service.api.once import CHANGING
from service.db import Base, Database
from service.jobs.tables import Model, PastCall
from tests.integration.service.domain import Domain
from tests.integration.service.routes import every_route

JOBS, SWEEPS = "/v1/fine_tuning/jobs", "/v1/fine_tuning/sweeps"
BODY = {"model": "tiny", "training_file": "file-train"}
SWEEP = {**BODY, "sweep": {"seed": [0, 1]}}


class Asked:
    """A request: what to send, to what."""

    def __init__(self, path: str, **sent: Any) -> None:
        self.path, self.sent = path, sent


def job(client: TestClient) -> str:
    return str(client.post(JOBS, json=BODY).json()["id"])


def cancelled_job(client: TestClient) -> str:
    name = job(client)
    client.post(f"{JOBS}/{name}/cancel")
    return name


def paused_job(client: TestClient) -> str:
    name = job(client)
    client.post(f"{JOBS}/{name}/pause")
    return name


def sweep(client: TestClient) -> str:
    return str(client.post(SWEEPS, json=SWEEP).json()["id"])


def key(client: TestClient) -> str:
    return str(client.post("/v1/keys", json={"owner": "alice"}).json()["id"])


def upload(client: TestClient) -> Asked:
    return Asked("/v1/files", files={"file": ("f.jsonl", LINE)}, data={"purpose": "fine-tune"})


LINE = b'{"problem": "p", "solution": "s"}'
WHOLE = {"bytes": len(LINE), "filename": "f.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}


def begun(client: TestClient) -> str:
    return "/v1/uploads/" + str(client.post("/v1/uploads", json=WHOLE).json()["id"])


def arrived(client: TestClient) -> Asked:
    upload = begun(client)
    part = client.post(f"{upload}/parts", files={"data": LINE}).json()["id"]
    return Asked(f"{upload}/complete", json={"part_ids": [part]})


HOOKS = "/v1/webhook_endpoints"
HOOK = {"name": "x", "url": "https://93.184.215.14/x", "event_types": ["fine_tuning.job.failed"]}


def webhook(client: TestClient) -> str:
    return HOOKS + "/" + str(client.post(HOOKS, json=HOOK).json()["id"])


LOW = {"priority": "low"}

STORM: dict[str, Callable[[TestClient], Asked]] = {
    f"POST {JOBS}": lambda client: Asked(JOBS, json=BODY),
    f"DELETE {JOBS}/{{job_id}}": lambda client: Asked(f"{JOBS}/{cancelled_job(client)}"),
    f"POST {JOBS}/estimate": lambda client: Asked(f"{JOBS}/estimate", json=BODY),
    f"POST {JOBS}/{{job_id}}/cancel": lambda client: Asked(f"{JOBS}/{job(client)}/cancel"),
    f"POST {JOBS}/{{job_id}}/pause": lambda client: Asked(f"{JOBS}/{job(client)}/pause"),
    f"POST {JOBS}/{{job_id}}/resume": lambda client: Asked(f"{JOBS}/{paused_job(client)}/resume"),
    f"POST {JOBS}/{{job_id}}/priority": lambda client: Asked(f"{JOBS}/{job(client)}/priority", json=LOW),
    f"POST {JOBS}/{{job_id}}/retry": lambda client: Asked(f"{JOBS}/{cancelled_job(client)}/retry"),
    f"POST {SWEEPS}": lambda client: Asked(SWEEPS, json=SWEEP),
    f"POST {SWEEPS}/estimate": lambda client: Asked(f"{SWEEPS}/estimate", json=SWEEP),
    f"POST {SWEEPS}/{{sweep_id}}/cancel": lambda client: Asked(f"{SWEEPS}/{sweep(client)}/cancel"),
    "POST /v1/files": upload,
    "POST /v1/uploads": lambda client: Asked("/v1/uploads", json=WHOLE),
    "POST /v1/uploads/{upload_id}/parts": lambda client: Asked(f"{begun(client)}/parts", files={"data": LINE}),
    "POST /v1/uploads/{upload_id}/complete": arrived,
    "POST /v1/uploads/{upload_id}/cancel": lambda client: Asked(f"{begun(client)}/cancel"),
    "DELETE /v1/files/{file_id}": lambda client: Asked("/v1/files/file-train"),
    "DELETE /v1/models/{name}": lambda client: Asked("/v1/models/tiny"),
    "POST /v1/keys": lambda client: Asked("/v1/keys", json={"owner": "alice"}),
    "POST /v1/keys/{key_id}/rotate": lambda client: Asked(f"/v1/keys/{key(client)}/rotate"),
    "DELETE /v1/keys/{key_id}": lambda client: Asked(f"/v1/keys/{key(client)}"),
    f"POST {HOOKS}": lambda client: Asked(HOOKS, json=HOOK),
    f"POST {HOOKS}/{{endpoint_id}}": lambda client: Asked(webhook(client), json={"name": "y"}),
    f"POST {HOOKS}/{{endpoint_id}}/rotate_secret": lambda client: Asked(webhook(client) + "/rotate_secret"),
    f"POST {HOOKS}/{{endpoint_id}}/test": lambda client: Asked(webhook(client) + "/test"),
    f"DELETE {HOOKS}/{{endpoint_id}}": lambda client: Asked(webhook(client)),
}
"""A valid request for every route that changes something. A new route needs one, too."""

SECRETIVE = {f"POST {HOOKS}", f"POST {HOOKS}/{{endpoint_id}}/rotate_secret"}
"""Each of their answers shows a secret, which is kept nowhere: a repetition has another one."""

KEYS = {"POST /v1/keys", "POST /v1/keys/{key_id}/rotate"}
"""The same is true of these: see test_access.py."""

SAMPLES = {f"POST {HOOKS}/{{endpoint_id}}/test"}
"""They are sent to a receiver: see test_webhooks.py."""

ANSWERS = {
    "POST /api/models/{namespace}/{name}/paths-info/{revision}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
}
"""They ask, and change nothing."""

UNSEEN = {"past_calls", "audit"}
"""What notes that somebody asked."""


@pytest.fixture
def client(app: FastAPI, secret: str) -> TestClient:
    return TestClient(app, headers={"authorization": f"Bearer {secret}"})


def contents(database: Database) -> dict[str, list[Any]]:
    with database.snapshot() as session:
        return {
            table.name: sorted(map(str, session.execute(select(table)).all()))
            for table in Base.metadata.sorted_tables
            if table.name not in UNSEEN
        }


def test_every_changing_route_is_stormed(app: FastAPI) -> None:
    changing = {f"{found.method} {found.path}" for found in every_route(app) if found.method in CHANGING}
    assert changing == set(STORM) | ANSWERS


@pytest.mark.parametrize("route", sorted(set(STORM) - SECRETIVE - KEYS - SAMPLES))
@pytest.mark.parametrize("mark", ["the client's word", "an Idempotency-Key"])
def test_a_lost_answer_is_given_again_and_nothing_is_done_twice(
    client: TestClient, served: Domain, route: str, mark: str
) -> None:
    asked = STORM[route](client)

    def send(count: int) -> Any:
        headers = {"x-stainless-retry-count": str(count)} if mark == "the client's word" else {"Idempotency-Key": "k"}
        return client.request(route.split()[0], asked.path, headers=headers, **asked.sent)

    first = send(0)
    assert first.status_code == 200, first.text
    after = contents(served.database)
    with ThreadPoolExecutor(4) as pool:
        repeated = list(pool.map(send, range(1, 9)))
    assert [answer.status_code for answer in repeated] == [200] * 8
    assert all(answer.json() == first.json() for answer in repeated)
    assert contents(served.database) == after


@pytest.mark.parametrize("route", sorted(SECRETIVE))
@pytest.mark.parametrize("mark", ["the client's word", "an Idempotency-Key"])
def test_a_lost_secret_is_given_anew_to_the_thing_that_was_made(
    client: TestClient, served: Domain, route: str, mark: str
) -> None:
    asked = STORM[route](client)
    marks = [{"x-stainless-retry-count": str(count)} for count in range(3)]
    headers = marks if mark == "the client's word" else [{"Idempotency-Key": "k"}] * 3
    answers = [client.post(asked.path, headers=mark, **asked.sent).json() for mark in headers]
    assert len({answer["id"] for answer in answers}) == 1
    assert len({answer["signing_secret"] for answer in answers}) == 3
    assert len(client.get(HOOKS).json()["data"]) == 1
    kept = str(contents(served.database)["webhook_endpoints"])
    assert [answer["signing_secret"] in kept for answer in answers] == [False, False, True]
    with served.database.snapshot() as session:
        assert "whsec_" not in str([row.answer.get("signing_secret") for row in session.scalars(select(PastCall))])


class Lossy(httpx.HTTPTransport):
    """A network that carries every request, and loses the first answer to each that changes something."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        if request.method in CHANGING and request.headers["x-stainless-retry-count"] == "0":
            answer.close()
            raise httpx.ReadError("the answer got lost")
        return answer


def test_the_openai_client_over_a_lossy_network_does_everything_once(
    base_url: str, secret: str, served: Domain
) -> None:
    with OpenAI(
        base_url=base_url, api_key=secret, max_retries=1, http_client=httpx.Client(transport=Lossy())
    ) as client:
        made = client.fine_tuning.jobs.create(model="tiny", training_file="file-train")
        assert [found.id for found in client.fine_tuning.jobs.list()] == [made.id]
        assert str(client.fine_tuning.jobs.pause(made.id).status) == "paused"
        assert client.fine_tuning.jobs.resume(made.id).status == "queued"
        assert client.fine_tuning.jobs.cancel(made.id).status == "cancelled"
        retried = client.post(f"/fine_tuning/jobs/{made.id}/retry", cast_to=dict[str, Any])
        assert retried["status"] == "queued"
        passing = client.fine_tuning.jobs.create(model="tiny", training_file="file-train", seed=1)
        client.fine_tuning.jobs.cancel(passing.id)
        assert client.delete(f"/fine_tuning/jobs/{passing.id}", cast_to=dict[str, Any])["deleted"]
        assert client.files.delete("file-heldout").deleted
        assert client.models.delete("tiny").deleted
    with served.database.snapshot() as session:
        assert session.get(Model, "tiny") is None
    messages = [event.message for event in served.events(made.id)]
    assert [message.split(".")[0] for message in messages] == [
        "The job was accepted",
        "The job is paused",
        "The job goes on",
        "Cancelling the job",
        "The job was cancelled",
        "The job runs again from where it ended",
    ]
