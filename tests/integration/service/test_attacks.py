"""What an attacker tries, by the OWASP API Security Top 10 of 2023.

The page security.md lists what we know of, each attack with its answer and its test. Most tests stand beside what they
are about; here are those that have no other place.
"""

from __future__ import annotations

import ast
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.jobs.access.keys import create_key
from service.jobs.data.insights import Question
from service.jobs.errors import TooMany
from service.jobs.forecast.errands import OWN, Errands
from tests.integration.service.domain import Domain, locked
from tests.integration.service.routes import every_route
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "service" / "security.md").read_text()
ROWS = re.findall(r"^\| (API\d+) \|.*\| `(tests/[\w/]+\.py)::(test_\w+)` \|$", PAGE, re.MULTILINE)

DOCUMENTATION = ("/docs", "/v1/openapi.json")
OPEN = ("/healthz", "/readyz", *DOCUMENTATION)
JOBS, HOOKS = "/v1/fine_tuning/jobs", "/v1/webhook_endpoints"
FAILED = "fine_tuning.job.failed"


def test_every_number_of_owasps_list_has_attacks() -> None:
    assert {number for number, _, _ in ROWS} == {f"API{number}" for number in range(1, 11)}
    assert len(ROWS) == PAGE.count("\n| API"), "a row names no test"


@pytest.mark.parametrize(("path", "test"), [row[1:] for row in ROWS])
def test_every_attack_has_its_test(path: str, test: str) -> None:
    assert test in names_in(path)


@cache
def names_in(path: str) -> set[str]:
    found = ast.walk(ast.parse((ROOT / path).read_text()))
    return {node.name for node in found if isinstance(node, ast.FunctionDef)}


@pytest.fixture
def client(app: FastAPI, secret: str) -> Iterator[TestClient]:
    with TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False) as client:
        yield client


def another(app: FastAPI, served: Domain, owner: str, *scopes: Any) -> TestClient:
    key = create_key(served.database, owner, scopes).secret
    return TestClient(app, headers={"authorization": f"Bearer {key}"}, raise_server_exceptions=False)


def test_a_hash_tells_nobody_that_another_has_the_content(app: FastAPI, served: Domain) -> None:
    stranger = another(app, served, "stranger", "read", "submit")
    sha256 = served.data.sha256
    for name in ("if-none-match", "if-match", "if-range"):
        for path in ("/v1/files/file-train/content", f"/v1/files/{sha256}/content", f"/v1/artifacts/{sha256}/content"):
            assert stranger.get(path, headers={name: f'"{sha256}"', "range": "bytes=0-3"}).status_code == 404
    line = b'{"problem": "p", "solution": "s"}'
    answers = [
        one.post("/v1/files", files={"file": ("f.jsonl", line)}, data={"purpose": "fine-tune"}).json()
        for one in (another(app, served, "owner", "submit"), stranger)
    ]
    for answer in answers:
        del answer["id"], answer["created_at"]
    assert answers[0] == answers[1]


def test_nobody_sets_what_is_not_theirs_to_set(client: TestClient) -> None:
    hook = {"name": "x", "url": "https://93.184.215.14/x", "event_types": [FAILED]}
    whole = {"bytes": 3, "filename": "f.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    right: dict[str, dict[str, Any]] = {
        JOBS: {"model": "tiny", "training_file": "file-train"},
        HOOKS: hook,
        "/v1/uploads": whole,
        "/v1/keys": {"owner": "somebody"},
    }
    theirs = {"id": "x", "created_at": 0, "status": "succeeded", "organization_id": "x", "user_provided_suffix": "x"}
    theirs |= {"fine_tuned_model": "x", "secret": "x", "signing_secret": "x", "hash": "x", "key_id": "x", "sources": {}}
    for path, body in right.items():
        for name, value in {**theirs, **({} if path == "/v1/keys" else {"owner": "stranger"})}.items():
            answer = client.post(path, json={**body, name: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (422, name), path
        assert client.post(path, json=body).status_code == 200, path


def test_a_key_without_scopes_gets_through_no_route(app: FastAPI, served: Domain) -> None:
    meter = another(app, served, "owner", "metrics")
    for found in every_route(app):
        if not found.path.startswith((*OPEN, "/metrics")):
            takes_form = found.path in ("/v1/files", "/v1/uploads/{upload_id}/parts")
            body: Any = {"files": {"data": b"x"}} if takes_form else {"json": {}}
            answer = meter.request(found.method, found.at(), **(body if found.method == "POST" else {}))
            assert answer.status_code == 403, found


def test_every_route_is_documented_or_serves_the_documentation(app: FastAPI) -> None:
    documented = {(verb.upper(), path) for path, verbs in app.openapi()["paths"].items() for verb in verbs}
    for found in every_route(app):
        if not found.path.startswith(DOCUMENTATION) and found.method != "HEAD":
            assert (found.method, found.path) in documented


PATHS = ("..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/allo.db", "/etc/passwd", "%5c..%5cx", "a%0d%0ax-evil:%201")


@pytest.mark.parametrize("path", PATHS)
def test_no_path_of_the_hub_leads_out_of_its_repository(client: TestClient, served: Domain, path: str) -> None:
    job = client.post(JOBS, json={"model": "tiny", "training_file": "file-train"}).json()["id"]
    served.run_all()
    assert client.get(f"/jobs/{job}/resolve/main/data.bin").status_code == 200
    for name in (f"{job}/resolve/main/{path}", f"{job}/resolve/{path}/data.bin", f"{path}/resolve/main/x"):
        answer = client.get(f"/jobs/{name}")
        assert answer.status_code == 404
        assert "x-evil" not in answer.headers
        assert answer.headers.get("x-error-message", "").isprintable()


NAMES = ("a\r\nx-evil: 1\r\n\r\nb", 'a"; filename="b', "\u202egnp.exe", "é漢🙂.jsonl", "%0d%0a")


@pytest.mark.parametrize("name", NAMES)
def test_no_name_splits_the_head_of_an_answer(client: TestClient, name: str) -> None:
    whole = {"bytes": 33, "filename": name, "mime_type": "x", "purpose": "fine-tune"}
    upload = client.post("/v1/uploads", json=whole).json()["id"]
    data = {"data": b'{"problem": "p", "solution": "s"}'}
    part = client.post(f"/v1/uploads/{upload}/parts", files=data).json()["id"]
    file = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [part]}).json()["file"]
    answer = client.get(f"/v1/files/{file['id']}/content")
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert re.fullmatch(r"attachment; filename\*=UTF-8''[\w.%~-]+", answer.headers["content-disposition"], re.ASCII)


def test_a_webhooks_name_is_looked_up_while_nobody_waits(base_url: str, secret: str, served: Domain) -> None:
    """Whoever answers for a name may take their time: no transaction may be open meanwhile, for all who write would
    wait for its end. Another program keeps everyone from writing, and still a bad URL is told."""
    hook = {"name": "x", "url": "https://93.184.215.14/x", "event_types": [FAILED]}
    root, told = base_url.removesuffix("/v1"), {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=root, headers=told, timeout=PATIENCE) as client:
        endpoint = client.post(HOOKS, json=hook).json()["id"]
        with locked(served.database):
            for path in (HOOKS, f"{HOOKS}/{endpoint}"):
                answer = client.post(path, json={**hook, "url": "ftp://93.184.215.14/x"})
                assert (answer.status_code, answer.json()["error"]["param"]) == (422, "url")


SMUGGLED = (
    "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "Content-Length: 2\r\nContent-Length: 4\r\n\r\n{}  ",
    "Content-Length: +2\r\n\r\n{}",
    "Content-Length: -1\r\n\r\n{}",
    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "X-A: a\0b\r\nContent-Length: 0\r\n\r\n",
    "X-A: a\nContent-Length: 0\r\n\r\n",
)


@pytest.mark.parametrize("rest", SMUGGLED)
def test_no_request_hides_in_another(base_url: str, secret: str, rest: str) -> None:
    """A proxy before us may see the end of a body elsewhere: what has two ends is refused and closed."""
    url = urlsplit(base_url)
    head = f"POST {JOBS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Type: application/json\r\n"
    hidden = f"GET /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n"
    with socket.create_connection((url.hostname, url.port), PATIENCE) as connection:
        connection.sendall((head + rest + hidden).encode("latin-1"))
        answered = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(2**16):
                answered += part
    assert answered.count(b"HTTP/1.1") == 1
    assert answered.startswith(b"HTTP/1.1 400")


def test_the_documentation_is_written_once(app: FastAPI) -> None:
    """Or else whoever has no key takes all of a processor with forty requests a second."""
    client, asked, write = TestClient(app), [], app.openapi
    app.openapi = lambda: asked.append(1) or write()  # type: ignore[func-returns-value, method-assign]
    pages = {client.get(path).content for path in ("/docs", "/v1/openapi.json") for _ in range(5)}
    assert (len(pages), len(asked)) == (2, 2)


def test_one_owner_leaves_room_for_what_others_ask_of_the_engine() -> None:
    going_on = threading.Event()
    errands: Errands[Question, bool] = Errands(lambda _: going_on.wait())
    for number in range(OWN):
        errands.ask(Question("greedy", str(number), (), None))
    with pytest.raises(TooMany):
        errands.ask(Question("greedy", "one more", (), None))
    other = errands.ask(Question("another", "0", (), None))
    going_on.set()
    assert other.result(PATIENCE)
