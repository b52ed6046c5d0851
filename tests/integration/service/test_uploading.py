"""Files on their way in: bounded in memory, time and number, and whole or not at all."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from backports import zstd
from fastapi import FastAPI

from service.api.intake import Intake
from service.jobs.data.marking import witnesses
from tests.integration.service.domain import Domain
from tests.waiting import until

LINE = b'{"problem": "p", "solution": "s"}\n'


@pytest.fixture
def client(base_url: str, secret: str, served: Domain) -> Iterator[httpx.Client]:
    until(lambda: witnesses(served.database) != [served.data.sha256])  # its store has its marker
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=base_url, headers=headers, trust_env=False, timeout=600) as client:
        yield client


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    return f'--edge\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + value + b"\r\n"


def send(client: httpx.Client, body: Any, path: str = "/files") -> httpx.Response:
    return client.post(path, content=body, headers={"content-type": "multipart/form-data; boundary=edge"})


def is_empty(served: Domain) -> bool:
    """Whether nothing is stored beside the marker and what the fixtures stored, and nothing is half-written."""
    store: Any = served.store
    held = {served.data.sha256, *witnesses(served.database)}
    return {blob.sha256 for blob in store.stored()} == held and not any(store.scratch.iterdir())


def test_the_purpose_may_come_after_the_file(client: httpx.Client) -> None:
    made = send(client, part("file", LINE, "a.jsonl") + part("purpose", b"fine-tune") + b"--edge--")
    assert (made.json()["status"], made.json()["filename"]) == ("processed", "a.jsonl")
    assert client.get(f"/files/{made.json()['id']}/content").content == LINE


def test_a_refused_form_leaves_nothing(client: httpx.Client, served: Domain) -> None:
    file = part("file", LINE * 100, "a.jsonl")
    for body in (file + b"--edge--", file + part("purpose", b"vision") + b"--edge--", file, file + b"--edge--" * 2):
        answer = send(client, body)
        assert answer.status_code == 422, body
        assert answer.json()["error"]["message"]
        assert is_empty(served)


def test_a_file_over_the_limit_is_refused_whatever_its_length_said(client: httpx.Client, served: Domain) -> None:
    body = part("purpose", b"fine-tune") + part("file", LINE * 1000) + b"--edge--"
    for content in (body, iter([body]), iter([body] * 100)):
        assert send(client, content).status_code == 413
        assert is_empty(served)


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_file_that_becomes_too_large_when_it_is_read_is_refused_and_leaves_nothing(
    app: FastAPI, client: httpx.Client, served: Domain, compress: Callable[[bytes], bytes]
) -> None:
    """The limit is 20,000 bytes; what an owner has left is one, too."""

    def refused(lines: int) -> httpx.Response:
        answer = send(client, part("purpose", b"fine-tune") + part("file", compress(LINE * lines)) + b"--edge--")
        assert is_empty(served)
        return answer

    assert (refused(1000).status_code, refused(1000).json()["error"]["code"]) == (413, "request_too_large")
    context = app.state.context
    object.__setattr__(context, "settings", context.settings.model_copy(update={"max_owner_bytes": 12 + 5000}))
    assert (refused(400).status_code, refused(400).json()["error"]["code"]) == (429, "quota_exceeded")


def test_a_file_past_the_owners_quota_is_refused_with_the_numbers_and_leaves_nothing(
    app: FastAPI, client: httpx.Client, served: Domain
) -> None:
    """The fixture's files are one content of 12 bytes."""
    context = app.state.context
    limited = context.settings.model_copy(update={"max_owner_bytes": 12 + 50 * len(LINE)})
    object.__setattr__(context, "settings", limited)
    body = part("purpose", b"fine-tune") + part("file", LINE * 51) + b"--edge--"
    refused = send(client, body)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    error = refused.json()["error"]
    assert (error["code"], error["limit"]) == ("quota_exceeded", 12 + 50 * len(LINE))
    assert is_empty(served)
    whole = {"bytes": 51 * len(LINE), "filename": "a", "mime_type": "b", "purpose": "fine-tune"}
    assert client.post("/uploads", json=whole).json()["error"]["code"] == "quota_exceeded"
    assert send(client, part("purpose", b"fine-tune") + part("file", LINE * 50) + b"--edge--").status_code == 200
    job = {"model": "tiny", "training_file": "file-train"}
    assert client.post("/fine_tuning/jobs", json=job).json()["error"]["code"] == "quota_exceeded"


def test_many_or_large_fields_and_files_are_refused_before_they_take_room(client: httpx.Client) -> None:
    process = psutil.Process()
    files = process.num_fds()
    forms = (
        b"".join(part(f"field-{number}", b"x" * 100) for number in range(500)),
        part("purpose", b"x" * 50_000),
        b"".join(part("file", b"x", f"{number}") for number in range(400)),
        b"--edge\r\n" + b"x: y\r\n" * 5000,
        b"--edge\r\nx: " + b"y" * 50_000,
    )
    for body in forms:
        assert send(client, body + b"--edge--").status_code == 422
    assert process.num_fds() <= files + 50, "each part of a form must not hold a descriptor"


def test_a_client_that_leaves_leaves_nothing(app: FastAPI, base_url: str, secret: str, served: Domain) -> None:
    object.__setattr__(app.state.context, "intake", Intake(4, 4, piece=1))
    leaving = half_sent(base_url, secret, part("purpose", b"fine-tune") + part("file", LINE * 10))
    until(lambda: any(served.store.scratch.iterdir()))
    leaving.close()
    until(lambda: is_empty(served))


def half_sent(base_url: str, secret: str, body: bytes) -> socket.socket:
    url = urlsplit(base_url)
    connection = socket.create_connection((url.hostname, url.port))
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
        "content-type: multipart/form-data; boundary=edge\r\ncontent-length: 10000\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_one_owner_has_a_bounded_number_of_uploads_and_other_requests_go_on(
    app: FastAPI, base_url: str, secret: str, client: httpx.Client
) -> None:
    object.__setattr__(app.state.context, "intake", Intake(64, 50))
    body = part("purpose", b"fine-tune") + part("file", LINE * 10)
    with ThreadPoolExecutor(50) as pool:
        slow = list(pool.map(lambda _: half_sent(base_url, secret, body), range(50)))
    try:
        until(lambda: app.state.context.intake._taken["owner"] == 50)
        refused = send(client, body + b"--edge--")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert client.get("/files").status_code == 200
    finally:
        for connection in slow:
            connection.close()
    until(lambda: app.state.context.intake._taken["owner"] == 0)
