"""Another owner's things, on every route and with every method: exactly as if they were not there (OWASP API1:2023)."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.api.schemas import CreateJob
from service.jobs.access.keys import create_key
from tests.integration.service.domain import Domain
from tests.integration.service.routes import Route, every_route

JOBS, SWEEPS, HOOKS = "/v1/fine_tuning/jobs", "/v1/fine_tuning/sweeps", "/v1/webhook_endpoints"
SCOPES = ("read", "submit", "metrics")

ABSENT = {
    "file_id": "file-00000000000000000000000000",
    "job_id": "ftjob-00000000000000000000000000",
    "sweep_id": "ftsweep-00000000000000000000000000",
    "artifact_id": "art-00000000000000000000000000",
    "endpoint_id": "whend-00000000000000000000000000",
    "upload_id": "upload-00000000000000000000000000",
    "key_id": "key-00000000000000000000000000",
    "name": "ft:tiny:owner:00000000",
    "path": "data.bin",
    "sha256": "0" * 64,
}


NOT_THERE = ("/report", "/{folder}")
"""Of a good file there is no report; the model has no folders."""

QUERY = {"model": "tiny", "stage": "warmup"}
"""What a route wants to know beside the name."""


@pytest.fixture
def theirs(app: FastAPI, secret: str, served: Domain) -> dict[str, str]:
    """One thing of every kind of the owner's, by the parameter that names it."""
    client = TestClient(app, headers={"authorization": f"Bearer {secret}"})
    line = ("f.jsonl", b'{"problem": "p", "solution": "s", "answer": "s"}')
    file = client.post("/v1/files", files={"file": line}, data={"purpose": "fine-tune"}).json()["id"]
    body = {"model": "tiny", "training_file": file, "method": {"type": "dpo"}}
    job = client.post(JOBS, json=body).json()["id"]
    served.run_all()
    view = client.get(f"{JOBS}/{job}").json()
    hook = {"name": "x", "url": "https://93.184.215.14/x", "event_types": ["fine_tuning.job.failed"]}
    whole = {"bytes": 3, "filename": "f.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    artifacts = client.get(f"{JOBS}/{job}/artifacts").json()["data"]
    return {
        "file_id": file,
        "job_id": job,
        "sweep_id": client.post(SWEEPS, json={**body, "sweep": {"seed": [1, 2]}}).json()["id"],
        "artifact_id": artifacts[0]["id"],
        "endpoint_id": client.post(HOOKS, json=hook).json()["id"],
        "upload_id": client.post("/v1/uploads", json=whole).json()["id"],
        "key_id": client.get("/v1/keys").json()["data"][0]["id"],
        "name": view["fine_tuned_model"],
        "path": "data.bin",
        "sha256": client.get(f"/v1/files/{file}").json()["sha256"],
    }


@pytest.fixture
def stranger(app: FastAPI, served: Domain) -> TestClient:
    secret = create_key(served.database, "stranger", SCOPES).secret
    return TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False)


def test_another_owners_thing_is_answered_exactly_as_an_absent_one(
    app: FastAPI, stranger: TestClient, theirs: dict[str, str]
) -> None:
    routes = [found for found in every_route(app) if of_an_owner(found)]
    assert len(routes) > 20
    for found in routes:
        there, absent = (seen(stranger, found, names(found, names_of)) for names_of in (theirs, ABSENT))
        assert there == absent, found
        assert there[0] in (403, 404), found


def test_its_owner_is_told_more_on_every_one_of_these_routes(app: FastAPI, secret: str, theirs: dict[str, str]) -> None:
    owner = TestClient(app, headers={"authorization": f"Bearer {secret}"})
    for found in every_route(app):
        if found.method == "GET" and of_an_owner(found) and not found.path.endswith(NOT_THERE):
            there, absent = (seen(owner, found, names(found, names_of)) for names_of in (theirs, ABSENT))
            assert there != absent, found


NAMED_BY = {"model": "name", "validation_file": "file_id", "ours": "job_id", "theirs": "job_id", "object": "job_id"}
NAMED_BY |= {"sha256": "sha256"}
"""Query parameters that name a thing, and of which kind; `after` has tests of its own."""

NAME_NOTHING = {
    *("after", "limit", "order", "purpose", "dry_run", "dtype", "type", "rank", "file", "format", "stage", "owner"),
    *("blobs", "expand", "securityStatus", "recursive", "cursor", "include_prs", "download", "folder"),
}


def test_another_owners_thing_is_as_an_absent_one_in_every_query(
    app: FastAPI, stranger: TestClient, served: Domain, theirs: dict[str, str]
) -> None:
    """Of a file, and with a model, of the stranger's own or of everyone's."""
    served.add_file("file-mine", owner="stranger")
    mine = {"file_id": "file-mine", "name": "tiny"}
    known = set()
    for found in every_route(app):
        fields = [field for part in found.parts for field in part.query_params]
        required = {field.alias: QUERY.get(field.alias, "x") for field in fields if field.field_info.is_required()}
        known |= {field.alias for field in fields}
        for name in {field.alias for field in fields} & set(NAMED_BY):
            there, absent = (
                stranger.request(found.method, found.at(**mine), params=required | {name: names_of[NAMED_BY[name]]})
                for names_of in (theirs, ABSENT)
            )
            assert there.status_code == absent.status_code, (found, name)
            assert blind(there.text, theirs) == blind(absent.text, ABSENT), (found, name)
            assert there.status_code in (403, 404) or there.json()["data"] == [], (found, name)
    assert known == set(NAMED_BY) | NAME_NOTHING, "whoever adds one says whether it names a thing"


def of_an_owner(found: Route) -> bool:
    """Whether the route names a thing that has an owner; a page of the documentation has none."""
    return bool(set(found.route.param_convertors) & set(ABSENT)) and "/docs/" not in found.path


def names(found: Route, values: dict[str, str]) -> dict[str, str]:
    """What names the thing; a Hub repository is named by its job."""
    if "namespace" not in found.route.param_convertors:
        return values
    return {**values, "namespace": "jobs", "name": values["job_id"], "revision": "main", "folder": "x"}


def seen(client: TestClient, found: Route, values: dict[str, str]) -> tuple[int, str, dict[str, str]]:
    """What a stranger sees: the status, the body and the headers, the thing's own name aside."""
    required = {field.alias for part in found.parts for field in part.query_params if field.field_info.is_required()}
    params = {name: QUERY.get(name, "x") for name in required}
    answer = client.request(found.method, found.at(**values), params=params, **body_of(found))
    hidden = ("x-request-id", "date", "content-length", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")
    return (
        answer.status_code,
        blind(answer.text, values),
        {name: blind(value, values) for name, value in answer.headers.items() if name not in hidden},
    )


def blind(text: str, values: dict[str, str]) -> str:
    for value in sorted(values.values(), key=len, reverse=True):
        text = text.replace(value, "…")
    return text


def body_of(found: Route) -> dict[str, Any]:
    """A body that is right, so that nothing but the name is wrong."""
    return (
        {
            "/v1/webhook_endpoints/{endpoint_id}/test": {"json": {"event_type": "fine_tuning.job.failed"}},
            "/v1/webhook_endpoints/{endpoint_id}": {"json": {"name": "y"}},
            "/v1/fine_tuning/jobs/{job_id}/priority": {"json": {"priority": "low"}},
            "/v1/uploads/{upload_id}/parts": {"files": {"data": b"abc"}},
            "/v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part-1"]}},
        }.get(found.path, {})
        if found.method == "POST"
        else {}
    )


FIELDS = [name for name in CreateJob.model_fields if name.endswith("_file") or name in ("model", "masks")]


@pytest.mark.parametrize("path", [JOBS, f"{JOBS}?dry_run=true", f"{JOBS}/estimate", SWEEPS])
def test_a_job_cannot_begin_with_another_owners_thing(
    stranger: TestClient, served: Domain, theirs: dict[str, str], path: str
) -> None:
    served.add_file("file-mine", owner="stranger")

    def submit(field: str, name: str) -> tuple[int, str]:
        body = {"model": "tiny", "training_file": "file-mine", "method": {"type": "allo"}, field: name}
        body |= {"sweep": {"seed": [0, 1]}} if path.startswith(SWEEPS) else {}
        answer = stranger.post(path, json=body)
        return answer.status_code, answer.text.replace(name, "…")

    for field in FIELDS:
        kind = {"model": "name", "masks": "job_id"}.get(field, "file_id")
        there, absent = (submit(field, names_of[kind]) for names_of in (theirs, ABSENT))
        assert there == absent, field
        assert there[0] in (404, 422), field


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_another_owners_job_is_compared_with_nothing(stranger: TestClient, theirs: dict[str, str], side: str) -> None:
    def asked(job: str) -> tuple[int, str]:
        answer = stranger.get(f"{JOBS}/compare", params={"ours": "ftjob-x", "theirs": "ftjob-x"} | {side: job})
        return answer.status_code, answer.text.replace(job, "…")

    assert asked(theirs["job_id"]) == asked(ABSENT["job_id"])
    assert asked(theirs["job_id"])[0] == 404


def test_another_owners_thing_is_no_place_to_go_on_after(stranger: TestClient, theirs: dict[str, str]) -> None:
    for path, kind in {JOBS: "job_id", SWEEPS: "sweep_id", "/v1/files": "file_id", HOOKS: "endpoint_id"}.items():
        there, absent = (stranger.get(path, params={"after": found[kind]}) for found in (theirs, ABSENT))
        assert there.status_code == absent.status_code, path
        assert there.text.replace(theirs[kind], "…") == absent.text.replace(ABSENT[kind], "…"), path
