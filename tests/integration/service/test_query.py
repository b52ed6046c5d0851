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
    assert client.post(f"{JOBS}?dry_run=true", json=body).json()["object"] == "fine_tuning.job.estimate"
    assert refused(client.post(f"{JOBS}?dry_rum=true", json=body))["param"] == "dry_rum"
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


@pytest.fixture
def lists(app: FastAPI, client: TestClient, served: Domain) -> dict[str, list[str]]:
    """Every list that goes on after something, with at least two things in it, and their ids."""
    hook = {"name": "x", "url": "https://93.184.215.14/x", "event_types": ["fine_tuning.job.succeeded"]}
    named = {"endpoint_id": client.post("/v1/webhook_endpoints", json=hook).json()["id"]}
    client.post("/v1/webhook_endpoints", json=hook)
    for seed in range(2):
        line = ("f.jsonl", b'{"problem": "p", "solution": "s"}')
        client.post("/v1/files", files={"file": line}, data={"purpose": "fine-tune"})
        job = {"model": "tiny", "training_file": "file-train", "method": {"type": "allo"}, "seed": seed}
        named["job_id"] = client.post(JOBS, json=job).json()["id"]
        client.post("/v1/fine_tuning/sweeps", json={**job, "sweep": {"seed": [seed]}})
        served.run_all()
    client.post("/v1/keys", json={"owner": "alice"})
    paths = [
        path.format(**named)
        for path, verbs in app.openapi()["paths"].items()
        if any(one["name"] == "after" for one in verbs.get("get", {}).get("parameters", ()))
    ]
    found = {path: [row["id"] for row in client.get(path).json()["data"]] for path in paths}
    assert len(found) == 9
    return found


def test_a_list_goes_on_after_each_of_its_rows_in_both_orders(client: TestClient, lists: dict[str, list[str]]) -> None:
    for path, ids in lists.items():
        shown = [row["id"] for row in client.get(path, params={"order": "asc", "limit": 100}).json()["data"]]
        assert shown[::-1] == ids, path
        for order, rows in (("desc", ids), ("asc", shown)):
            page = client.get(path, params={"after": rows[0], "order": order, "limit": 1}).json()
            assert [row["id"] for row in page["data"]] == rows[1:2], path
            assert page["has_more"] == (len(rows) > 2), path
        assert client.get(path, params={"after": ids[-1]}).json()["data"] == [], path


def test_an_unknown_place_to_go_on_after_is_said_by_every_list(client: TestClient, lists: dict[str, list[str]]) -> None:
    for path, ids in lists.items():
        elsewhere = next(other[0] for other in lists.values() if other[0][:4] != ids[0][:4])
        for unknown in ("zzz", "", elsewhere, ids[0][:-1], f"{ids[0]}x"):
            answer = client.get(path, params={"after": unknown})
            assert answer.status_code == 404, (path, unknown)
            assert answer.json()["error"]["param"] == "after"
            assert f"called {unknown!r}" in answer.json()["error"]["message"]


def test_whoever_deletes_a_list_row_by_row_is_shown_all_of_it(client: TestClient, lists: dict[str, list[str]]) -> None:
    """As `for file in client.files.list(order="asc", limit=1): client.files.delete(file.id)` does."""
    for path in ("/v1/webhook_endpoints", JOBS, "/v1/files"):
        after: dict[str, str] = {}
        for wanted in lists[path][:-3:-1]:
            (row,) = client.get(path, params={"limit": "1", "order": "asc"} | after).json()["data"]
            assert row["id"] == wanted
            assert client.delete(f"{path}/{wanted}").status_code == 200
            after = {"after": wanted}
