"""Query parameters, on every route that there is: what a route does not take is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.jobs import service
from service.jobs.repository import Page
from tests.integration.service.domain import OWNER, Domain
from tests.integration.service.routes import every_route

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def client(app: FastAPI, secret: str) -> TestClient:
    return TestClient(app, headers={"authorization": f"Bearer {secret}"})


def refused(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 422, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_every_route_refuses_a_parameter_that_it_does_not_have(app: FastAPI, client: TestClient) -> None:
    routes = [found for found in every_route(app) if found.method != "HEAD"]
    assert len(routes) > 15
    for found in routes:
        error = refused(client.request(found.method, found.at(), params={"verbos": "1"}))
        assert error["param"] == "verbos", found


def test_the_parameters_that_a_route_has_are_taken_by_it(app: FastAPI, client: TestClient) -> None:
    for found in every_route(app):
        for name in {field.alias for part in found.parts for field in part.query_params}:
            answer = client.request(found.method, found.at(), params={name: "x"})
            assert "no query parameter" not in answer.text, (found, name)


def test_a_dry_run_starts_no_job(client: TestClient, served: Domain) -> None:
    body = {"model": "tiny", "training_file": "file-train"}
    assert refused(client.post(f"{JOBS}?dry_run=true", json=body))["param"] == "dry_run"
    assert service.read_page(served.database, OWNER, Page()) == ([], False)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limt=1", "did you mean limit?"),
        ("metdata[a]=b", "did you mean metadata[…]?"),
        ("status=running", "this route takes after, limit, order, metadata[…]"),
        ("limit=1&limit=2", "is given twice"),
        ("metadata[a]=1&metadata[a]=2", "is given twice"),
        ("&".join(f"metadata[k{n}]=v" for n in range(17)), "At most 16"),
    ],
)
def test_what_is_wrong_with_a_parameter_is_said(client: TestClient, query: str, message: str) -> None:
    assert message in refused(client.get(f"{JOBS}?{query}"))["message"]


def test_a_huge_name_is_not_sent_back(client: TestClient) -> None:
    answer = client.get(f"{JOBS}?{'x' * 30_000}=1")
    assert refused(answer)
    assert len(answer.content) < 1_000


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (JOBS, "fine-tuning job"),
        (f"{JOBS}/{{job}}/events", "event"),
        (f"{JOBS}/{{job}}/checkpoints", "checkpoint"),
        ("/v1/files", "file"),
    ],
)
def test_an_unknown_place_to_go_on_after_is_said(client: TestClient, path: str, kind: str) -> None:
    job = client.post(JOBS, json={"model": "tiny", "training_file": "file-train"}).json()["id"]
    answer = client.get(path.format(job=job), params={"after": "zzz"})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "after"
    assert f"No {kind} 'zzz'" in answer.json()["error"]["message"]


def test_files_page_on_after_one_that_was_deleted_meanwhile(client: TestClient) -> None:
    line = b'{"problem": "p", "solution": "s"}'
    made = [
        client.post("/v1/files", files={"file": ("f.jsonl", line)}, data={"purpose": "fine-tune"}).json()["id"]
        for _ in range(3)
    ]
    client.delete(f"/v1/files/{made[2]}")
    found = client.get("/v1/files", params={"after": made[2], "limit": 1}).json()
    assert [file["id"] for file in found["data"]] == [made[1]]
