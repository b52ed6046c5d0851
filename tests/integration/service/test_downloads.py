"""Content over HTTP: whole, in parts, and only where it changed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.jobs.access.keys import create_key
from service.storage.store import CHUNK
from tests.integration.service.domain import ALLO, Domain
from tests.rot import flipped, rewrite

BYTES = b"some content"
SHA256 = hashlib.sha256(BYTES).hexdigest()
ETAG = f'"{SHA256}"'
URL = "/v1/models/tiny/files/model.safetensors"


@pytest.fixture
def client(app: FastAPI, secret: str) -> Iterator[TestClient]:
    with TestClient(app, headers={"authorization": f"Bearer {secret}"}) as client:
        yield client


def test_the_whole_content_comes_with_its_hash(client: TestClient) -> None:
    answer = client.get(URL)
    assert (answer.status_code, answer.content) == (200, BYTES)
    digest = base64.b64encode(hashlib.sha256(BYTES).digest()).decode()
    assert answer.headers["etag"] == ETAG
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == "12"
    assert answer.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize(
    ("asked", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, b"some", "bytes 0-3/12"),
        ("Bytes=0-3", 206, b"some", "bytes 0-3/12"),
        ("bytes=5-", 206, b"content", "bytes 5-11/12"),
        ("bytes=-7", 206, b"content", "bytes 5-11/12"),
        ("bytes=5-999", 206, b"content", "bytes 5-11/12"),
        ("bytes=-999", 200, BYTES, None),
        ("bytes=0-", 200, BYTES, None),
        ("bytes=3-1", 200, BYTES, None),
        ("bytes=0-1,3-4", 200, BYTES, None),
        ("lines=1-2", 200, BYTES, None),
        ("bytes=-", 200, BYTES, None),
        (f"bytes=5-{'9' * 5000}", 206, b"content", "bytes 5-11/12"),
        (f"bytes={'0' * 5000}5-6", 206, b"co", "bytes 5-6/12"),
        (f"bytes=-{'9' * 5000}", 200, BYTES, None),
    ],
)
def test_a_range_is_that_part(
    client: TestClient, asked: str, status: int, content: bytes, content_range: str | None
) -> None:
    answer = client.get(URL, headers={"range": asked})
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers.get("content-range") == content_range


@pytest.mark.parametrize("asked", ["bytes=12-", "bytes=-0", "bytes=99-100", f"bytes={'9' * 5000}-"])
def test_a_range_beyond_the_end_is_refused_with_the_size(client: TestClient, asked: str) -> None:
    answer = client.get(URL, headers={"range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */12"
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


def test_a_range_of_a_content_that_changed_is_the_whole_new_one(client: TestClient) -> None:
    part = {"range": "bytes=5-"}
    assert client.get(URL, headers={**part, "if-range": ETAG}).content == b"content"
    assert client.get(URL, headers={**part, "if-range": '"old"'}).content == BYTES


def test_what_the_client_has_is_not_sent_again(client: TestClient) -> None:
    for value in (ETAG, f'"old", {ETAG}', f"W/{ETAG}", "*"):
        answer = client.get(URL, headers={"if-none-match": value})
        assert (answer.status_code, answer.content) == (304, b"")
    assert client.get(URL, headers={"if-none-match": '"old"'}).status_code == 200
    assert client.get(URL, headers={"if-match": ETAG}).status_code == 200
    assert client.get(URL, headers={"if-match": '"old"'}).status_code == 412
    assert client.get(URL, headers={"if-match": f"W/{ETAG}"}).status_code == 412


def test_head_is_get_without_the_bytes(client: TestClient) -> None:
    answer = client.head(URL)
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer.headers["etag"], answer.headers["content-length"]) == (ETAG, "12")
    part = client.head(URL, headers={"range": "bytes=0-3"})
    assert (part.status_code, part.headers["content-length"]) == (200, "12")


def test_everything_of_a_job_can_be_fetched_and_checked(client: TestClient, served: Domain) -> None:
    job_id = served.submit(ALLO).job.id
    served.run_all()
    artifacts = client.get(f"/v1/fine_tuning/jobs/{job_id}/artifacts").json()["data"]
    assert [(row["stage"], row["output"]) for row in artifacts][:3] == [
        ("sample", "responses"),
        ("pair", "negatives"),
        ("pair", "pairs"),
    ]
    name = client.get(f"/v1/fine_tuning/jobs/{job_id}").json()["fine_tuned_model"]
    files = client.get(f"/v1/models/{name}/files").json()["data"]
    assert [(row["path"], row["bytes"], row["sha256"]) for row in files] == [("data.bin", 12, SHA256)]
    for row in artifacts + files:
        assert hashlib.sha256(client.get(row["url"]).content).hexdigest() == row["sha256"]
    assert client.get(f"/v1/models/{name}/files/config.json").status_code == 404


def test_a_stranger_sees_none_of_it(client: TestClient, served: Domain) -> None:
    job_id = served.submit(ALLO).job.id
    served.run_all()
    artifact = served.view(job_id).artifacts[0].id
    model = served.view(job_id).job.fine_tuned_model
    stranger = {"authorization": f"Bearer {create_key(served.database, 'stranger', ('admin',)).secret}"}
    paths = [
        f"fine_tuning/jobs/{job_id}",
        f"fine_tuning/jobs/{job_id}/events",
        f"fine_tuning/jobs/{job_id}/checkpoints",
        f"fine_tuning/jobs/{job_id}/artifacts",
        f"artifacts/{artifact}/content",
        f"models/{model}",
        f"models/{model}/files",
        f"models/{model}/files/data.bin",
        "files/file-train",
        "files/file-train/content",
        "files/file-train/report",
    ]
    for path in paths:
        theirs, absent = (
            client.get(f"/v1/{path}", headers=stranger),
            client.get(f"/v1/{path.replace('-', '-x').replace('ft:', 'ft:x')}"),
        )
        assert (theirs.status_code, absent.status_code) == (404, 404), path
    for path in (f"fine_tuning/jobs/{job_id}/cancel", f"fine_tuning/jobs/{job_id}/retry"):
        assert client.post(f"/v1/{path}", headers=stranger).status_code == 404
    for path in ("files/file-train", f"models/{model}"):
        assert client.delete(f"/v1/{path}", headers=stranger).status_code == 404


@pytest.mark.parametrize("asked", [None, "bytes=0-3"])
def test_content_that_rotted_is_an_error_and_missing_content_too(
    client: TestClient, served: Domain, asked: str | None
) -> None:
    headers = {} if asked is None else {"range": asked}
    rewrite(served.store, SHA256, lambda _: b"some kontent")
    answer = client.get(URL, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "content_unavailable")
    served.store.delete(SHA256)
    answer = client.get(URL, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "content_unavailable")


def test_content_that_rotted_never_ends_as_if_it_were_whole(client: TestClient, served: Domain) -> None:
    large = served.store.put_stream([b"x" * CHUNK * 6])
    served.add_file("file-large", sha256=large.sha256, bytes=large.size)
    rewrite(served.store, large.sha256, lambda content: flipped(content, -1))
    with pytest.raises(RuntimeError, match="response already started"):
        client.get("/v1/files/file-large/content")
