"""Insight over HTTP: made once, in the background, by the engine; and the file's own facts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from service.api.shapes.data import Insight
from service.jobs import repository
from service.jobs.access.keys import create_key
from service.jobs.registry.models import register_model
from tests.integration.service.domain import Domain
from tests.tiny import save_tiny
from tests.waiting import until

GSM8K = [{"question": f"{n}+{n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in (1, 2, 3, 3)]


@pytest.fixture
def client(app: FastAPI, secret: str) -> Iterator[TestClient]:
    with TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False) as client:
        yield client


def upload(client: TestClient, *rows: Any) -> dict[str, Any]:
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    made = client.post("/v1/files", files={"file": ("f.jsonl.gz", content)}, data={"purpose": "fine-tune"})
    assert made.status_code == 200, made.text
    assert client.get(f"/v1/files/{made.json()['id']}/content").content == content
    found: dict[str, Any] = made.json()
    return found


def test_a_files_answer_tells_what_was_found(client: TestClient) -> None:
    found = upload(client, *GSM8K)
    facts = ("format", "form", "container", "rows", "duplicates")
    assert [found[name] for name in facts] == ["problems", "GSM8K", "jsonl.gz", 4, 1]
    assert client.get(f"/v1/files/{found['id']}").json() == found


def test_a_job_trains_on_the_lines_that_a_file_became(client: TestClient, served: Domain) -> None:
    file = upload(client, *GSM8K)
    job = client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file["id"]}).json()
    with served.database.snapshot() as session:
        found = repository.job(session, "owner", job["id"])
    assert found is not None
    ((path, sha256, size),) = found.sources["training_file"]
    content = b"".join(served.store.open(sha256))
    assert (path, size) == ("data.jsonl", len(content))
    assert [json.loads(line)["answer"] for line in content.splitlines()] == ["2", "4", "6", "6"]


def test_an_insight_is_made_once_and_kept(client: TestClient, served: Domain, secret: str, tmp_path: Path) -> None:
    register_model(served.database, served.store, "real", save_tiny(tmp_path / "m"), probe=lambda _: {"packs": True})
    training, validation = upload(client, *GSM8K)["id"], upload(client, GSM8K[0])["id"]
    path = f"/v1/files/{training}/insight?model=real&validation_file={validation}"
    first = client.get(path)
    assert (first.status_code, first.json()["status"]) == (202, "running")
    assert first.headers["retry-after"] == "1"
    until(lambda: client.get(path).status_code != 202)
    found = client.get(path).json()
    for answer in (first.json(), found):
        TypeAdapter(Insight).validate_python(answer, strict=True)
    assert (found["object"], found["status"], found["model"]) == ("file.insight", "completed", "real")
    assert found["tokens"]["lines"] == 4
    assert found["tokens"]["response"]["max"] > found["tokens"]["response"]["min"] - 1 > 0
    assert found["preview"][0]["sequences"][0]["segments"][0]["text"] == "<|user|>1+1?<|end|><|assistant|>"
    assert found["overlap"] == {"lines": 1, "prompts": 1}
    client.post("/ui/login", data={"key": secret}, headers={"origin": "http://testserver"})
    page = client.get(f"/ui/files/{training}/insight?model=real&validation_file={validation}").text
    assert "<mark>It is 2." in page
    assert 'class="chart histogram"' in page


def test_what_is_not_there_has_no_insight(client: TestClient, served: Domain) -> None:
    file = upload(client, *GSM8K)["id"]
    other = {"authorization": f"Bearer {create_key(served.database, 'another', ('read',)).secret}"}
    assert client.get(f"/v1/files/{file}/insight?model=tiny", headers=other).status_code == 404
    assert client.get(f"/v1/files/{file}/insight?model=none").status_code == 404
    assert client.get("/v1/files/file-none/insight?model=tiny").status_code == 404
    assert client.get(f"/v1/files/{file}/insight?model=tiny&validation_file=file-none").status_code == 404
    assert client.get(f"/v1/files/{file}/insight").status_code == 422
    assert client.get(f"/v1/files/{file}/insight?model=tiny&limit=3").status_code == 422
