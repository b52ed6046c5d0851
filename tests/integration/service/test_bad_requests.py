"""Whatever is wrong with a request: the right status, our error shape, and a service that goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.db import Database
from service.jobs.access.keys import create_key, revoke_key
from service.jobs.running import attempts
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import ALLO, Domain
from tests.waiting import until

JOBS = "/v1/fine_tuning/jobs"
JSON = {"content-type": "application/json"}
NESTED = json.loads('{"a":' * 400 + "1" + "}" * 400)


@pytest.fixture
def client(app: FastAPI, secret: str) -> Iterator[TestClient]:
    with TestClient(app, headers={"authorization": f"Bearer {secret}"}, raise_server_exceptions=False) as client:
        yield client


def error(answer: Any, status: int) -> dict[str, Any]:
    """The error, after checking what all of them have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req-")
    body: dict[str, Any] = answer.json()["error"]
    assert set(body) >= {"message", "type", "param", "code"}
    assert body["message"]
    return body


@pytest.mark.parametrize("path", ["/v1/models", JOBS, "/v1/files/x/content", "/none", "/v1/none"])
def test_without_a_valid_key_there_is_nothing_to_see(app: FastAPI, served: Domain, path: str) -> None:
    long_ago = Database(served.database.engine.url.render_as_string(hide_password=False), clock=lambda: 0)
    expired = create_key(long_ago, "owner", expires_at=1).secret
    long_ago.close()
    revoked = create_key(served.database, "owner")
    revoke_key(served.database, revoked.id)
    client = TestClient(app)
    for value in (None, "", "Bearer", "Bearer x", "Basic eDp4", f"Bearer {expired}", f"Bearer {revoked.secret}"):
        answer = client.get(path, headers={} if value is None else {"authorization": value})
        assert error(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_body_is_not_read_before_its_key_is_known(app: FastAPI, served: Domain) -> None:
    error(TestClient(app).post(JOBS, content=b"{not json", headers=JSON), 401)


def test_scopes_bound_what_a_key_may_do(client: TestClient, served: Domain) -> None:
    reader = {"authorization": f"Bearer {create_key(served.database, 'owner', ('read',)).secret}"}
    writer = {"authorization": f"Bearer {create_key(served.database, 'owner', ('submit',)).secret}"}
    assert client.get(JOBS, headers=reader).status_code == 200
    error(client.post(f"{JOBS}/x/cancel", headers=reader), 403)
    error(client.delete("/v1/files/file-train", headers=reader), 403)
    error(client.get(JOBS, headers=writer), 403)


def test_routes_and_methods_that_are_not_there(client: TestClient) -> None:
    assert error(client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    answer = client.put("/v1/models")
    assert error(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "GET"
    assert client.put(JOBS).headers["allow"] == "GET, POST"
    assert client.put("/v1/models/acme%2Ftiny").headers["allow"] == "DELETE, GET"
    assert client.put("/v1/files/x/content").headers["allow"] == "GET, HEAD"
    error(client.get(f"{JOBS}/"), 404)
    error(client.get("/v1/files/%00"), 404)
    error(client.get(f"{JOBS}?after=%00"), 422)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "model", "is required"),
        ([], None, "valid dictionary"),
        ({"model": 3}, "model", "valid string"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**31}, "seed", "less than"),
        ({"suffix": "a/b"}, "suffix", "takes letters"),
        ({"suffix": "x" * 65}, "suffix", "64 at most"),
        ({"training_file": "\0"}, "training_file", "NUL"),
        ({"masks": "ftjob-" + "0" * 60}, "masks", "at most 64"),
        ({"masks": ["ftjob-0"]}, "masks", "valid string"),
        ({"training_file": "\ud800"}, "training_file", "valid string"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k", "at most 512"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
        ({"metadata": {"k": 1}}, "metadata.k", "valid string"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.0", "belong under 'wandb'"),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "../x"}}]},
            "integrations.0.wandb.project",
            "pattern",
        ),
        ({"integrations": [{"type": "aim"}]}, "integrations.0.type", "'mlflow', 'wandb' or 'trackio'"),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
            "integrations.0.wandb",
            "its operator allows wandb",
        ),
        ({"suffix": "two words"}, "suffix", "takes letters, digits, '.', '_' and '-', 64 at most"),
        ({"seed": "x"}, "seed", "seed: should be a valid integer"),
        ({"temperature": 1, "top": 2}, "temperature", "there is no such field"),
        ({"method": {"type": "reinforcement"}}, "method.type", "'supervised', 'dpo' or 'allo'"),
        ({"method": {"type": "dpo", "allo": {}}}, "method", "belong under 'dpo'"),
        ({"method": {"type": "allo", "allo": {"stages": {"sft": 3}}}}, "method.allo.stages.sft", "valid dictionary"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": "\0"}}}}, "method.dpo.hyperparameters", "NUL"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": -1}}}}, "method.dpo.stages.warmup.beta", "0"),
        ({"hyperparameters": {"n_epochs": 10**11}}, "method.supervised.stages.sft.n_epochs", "10000"),
        ({"hyperparameters": {"n_epochs": 10**400}}, "hyperparameters", "64 bits"),
        ({"hyperparameters": {"learning_rate_multiplier": 10**400}}, "hyperparameters", "64 bits"),
        ({"hyperparameters": {"learning_rate": "inf"}}, "method.supervised.stages.sft.learning_rate", "valid number"),
        ({"hyperparameters": {"learning_rate": "1e-5"}}, "method.supervised.stages.sft.learning_rate", "valid number"),
        ({"hyperparameters": {"learning_rate": True}}, "method.supervised.stages.sft.learning_rate", "valid number"),
        ({"hyperparameters": {"devices": -5}}, "method.supervised.stages.sft.devices", "'auto' or should be greater"),
        ({"seed": "3"}, "seed", "valid integer"),
        ({"seed": True}, "seed", "valid integer"),
        ({"seed": 3.5}, "seed", "valid integer"),
        ({"metadata": {"k" * 65: ""}}, "metadata." + "k" * 65, "should have at most 64 characters"),
        ({"hyperparameters": {"template": "none"}}, "method.supervised.stages.sft.template", "holds {problem}"),
        ({"hyperparameters": {"n_epochs": "9" * 5000}}, "method.supervised.stages.sft.n_epochs", "sft"),
        (
            {"hyperparameters": {"chat_template_kwargs": json.loads('{"a":' * 400 + "1" + "}" * 400)}},
            "hyperparameters",
            "deeper",
        ),
        ({"hyperparameters": json.loads('{"a":' * 400 + "1" + "}" * 400)}, "hyperparameters", "deeper than 32"),
        (
            {"method": {"type": "dpo", "dpo": {"stages": {"x" * 9000: {}}}}},
            ("method.dpo.stages." + "x" * 9000)[:200],
            "no stage",
        ),
        ({"hyperparameters": {"n_epochs": "many"}}, "method.supervised.stages.sft.n_epochs", "valid integer"),
    ],
)
def test_a_bad_field_is_named_with_what_it_takes(client: TestClient, body: Any, param: str, message: str) -> None:
    if isinstance(body, dict) and body:
        body = {"model": "tiny", "training_file": "file-train", **body}
    found = error(client.post(JOBS, content=json.dumps(body), headers=JSON), 422)
    assert found["param"] == param
    assert message in found["message"]


def test_three_point_nought_is_a_whole_number(client: TestClient) -> None:
    body = {"model": "tiny", "training_file": "file-train", "seed": 3.0, "hyperparameters": {"n_epochs": 2.0}}
    job = client.post(JOBS, json=body).json()
    assert (job["seed"], job["method"]["supervised"]["stages"]["sft"]["n_epochs"]) == (3, 2)


def test_a_body_that_is_missing_or_no_json_is_told_so_in_our_words(client: TestClient) -> None:
    assert error(client.post(JOBS, headers=JSON), 422)["message"] == "The request has no body."
    found = error(client.post(JOBS, content=b"[" * 5000, headers=JSON), 400)
    assert found["code"] == "invalid_json"
    assert "nested too deeply" in found["message"]


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [("stop", "", "stop"), ("stop", ["a"] * 17, "stop"), ("messages", [{"role": "user", "content": []}], None)],
)
def test_what_may_be_of_several_kinds_is_named_as_it_was_written(
    client: TestClient, field: str, value: Any, param: str | None
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], field: value}
    found = error(client.post("/v1/chat/completions", json=body), 422)
    assert found["param"] == (param or "messages.0.content")
    assert "[" not in found["message"]


def test_what_is_no_json_is_told_so_wherever_a_body_may_be(client: TestClient, served: Domain) -> None:
    plain = {"content-type": "text/plain"}
    hook = {"name": "n", "url": "http://127.0.0.1:9/", "event_types": ["fine_tuning.job.failed"]}
    made = client.post("/v1/webhook_endpoints", json=hook).json()["id"]
    for path in ("/v1/webhook_endpoints", f"/v1/webhook_endpoints/{made}/rotate_secret", f"{JOBS}/x/retry"):
        error(client.post(path, content=b"{}", headers=plain), 415)
    assert client.post(f"/v1/webhook_endpoints/{made}/rotate_secret").status_code == 200
    twice = client.post("/v1/webhook_endpoints", json=hook | {"name": ""})
    assert error(twice, 422)["message"].count("name") == 1


def test_whether_it_is_alive_and_ready_is_told_to_head_too(client: TestClient) -> None:
    for path in ("/healthz", "/readyz"):
        assert (client.head(path).status_code, client.head(path).content) == (client.get(path).status_code, b"")


HUGE = '{"model": "tiny", "training_file": "file-train", "seed": ' + "9" * 5000 + "}"


@pytest.mark.parametrize("text", [HUGE, "{", '{"a": 1} x', "", "\xff", "[" * 5000, '{"seed": NaN}', '{"seed": 1e999}'])
def test_a_body_that_is_no_job_is_refused(client: TestClient, text: str) -> None:
    answer = client.post(JOBS, content=text.encode("latin-1"), headers=JSON)
    assert answer.status_code in (400, 422)
    error(answer, answer.status_code)


def test_infinite_numbers_are_refused_wherever_they_are(client: TestClient) -> None:
    text = '{"model": "tiny", "training_file": "file-train", "hyperparameters": {"learning_rate_multiplier": 1e999}}'
    found = error(client.post(JOBS, content=text, headers=JSON), 422)
    assert "finite" in found["message"]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up"])
def test_a_bad_query_is_named(client: TestClient, query: str) -> None:
    assert error(client.get(f"{JOBS}?{query}"), 422)["param"] == query.split("=")[0]


def test_bodies_are_bounded_and_typed(client: TestClient) -> None:
    big = b"x" * 10_001
    assert error(client.post(JOBS, content=big, headers=JSON), 413)["code"] == "request_too_large"
    error(client.post(JOBS, content=iter([big] * 2), headers=JSON), 413)
    error(client.post(JOBS, content=b"{}", headers={**JSON, "content-encoding": "gzip"}), 415)
    error(client.post(JOBS, content=b"{}", headers={"content-type": "text/plain"}), 415)
    error(client.post("/v1/files", content=b"{}", headers=JSON), 415)


def test_media_types_are_known_however_they_are_spelt(client: TestClient) -> None:
    body = json.dumps({"model": "tiny", "training_file": "file-train"})
    for kind in ("Application/JSON", "application/json;charset=UTF-8", "APPLICATION/JSON ; charset=utf-8"):
        assert client.post(JOBS, content=body, headers={"content-type": kind}).status_code == 200
    form = b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    form += b'--x\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n'
    form += b'{"problem": "p", "solution": "s"}\r\n--x--\r\n'
    answer = client.post("/v1/files", content=form, headers={"content-type": "Multipart/Form-Data; boundary=x"})
    assert answer.status_code == 200, answer.text


def test_files_are_bounded_and_checked(client: TestClient) -> None:
    def upload(content: bytes, **fields: str) -> Any:
        return client.post("/v1/files", files={"file": ("f.jsonl", content)}, data={"purpose": "fine-tune", **fields})

    error(upload(b"x" * 20_001), 413)
    error(upload(b"x" * 200_000), 413)
    assert error(upload(b""), 422)["code"] == "invalid_training_file"
    assert error(upload(b"{}", purpose="vision"), 422)["param"] == "purpose"
    error(upload(b"{}", **{"expires_after[anchor]": "created_at"}), 422)
    for seconds in ("3599", "2592001", "x", "1e4", "9" * 500):
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
        assert error(upload(b"{}", **fields), 422)["param"] == "expires_after[seconds]"
    found = error(upload(b'{"problem": "' + b"x" * 3000 + b'", "solution": "s"}'), 422)
    assert "longer than 2000 bytes" in found["message"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\\b\\passwd", "%2e%2e%2fpasswd"])
def test_a_file_name_never_leads_anywhere(client: TestClient, name: str) -> None:
    line = b'{"problem": "p", "solution": "s"}'
    made = client.post("/v1/files", files={"file": (name, line)}, data={"purpose": "fine-tune"}).json()
    assert "/" not in made["filename"]
    assert client.get(f"/v1/files/{made['id']}/content").content == line


def test_too_many_unfinished_jobs_are_refused_for_a_while(client: TestClient) -> None:
    body = {"model": "tiny", "training_file": "file-train"}
    for seed in range(5):
        assert client.post(JOBS, json={**body, "seed": seed}).status_code == 200
    answer = client.post(JOBS, json=body)
    assert error(answer, 429)["type"] == "rate_limit_error"
    assert int(answer.headers["retry-after"]) > 0


def test_a_retried_job_is_queued_again(client: TestClient) -> None:
    job = client.post(JOBS, json={"model": "tiny", "training_file": "file-train"}).json()["id"]
    assert error(client.post(f"{JOBS}/{job}/retry"), 409)["code"] == "conflict"
    client.post(f"{JOBS}/{job}/cancel")
    assert client.post(f"{JOBS}/{job}/retry").json()["status"] == "queued"


def test_what_ends_by_itself_may_be_asked_again(client: TestClient, served: Domain) -> None:
    job = served.submit(ALLO).job.id
    for _ in ("sample", "pair"):
        served.finish(served.claim())
    first, _other = served.claim(), served.claim()
    attempts.fail(served.database, first.stage_id, first.epoch, "no_pairs", "There are none.", retry=False)
    answer = client.post(f"{JOBS}/{job}/retry")
    assert error(answer, 409)["code"] == "busy"
    assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1")


def test_health_wants_no_key_and_tells_what_is_missing(app: FastAPI, broker: SilentBroker) -> None:
    client = TestClient(app)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    broker.down = True
    until(lambda: client.get("/readyz").status_code == 503)
    assert client.get("/readyz").json()["checks"] == {"database": True, "broker": False, "disk": True, "worker": False}


def test_an_error_of_ours_tells_nothing_but_its_id(app: FastAPI, client: TestClient) -> None:
    @app.get("/v1/broken")
    def broken() -> None:
        raise RuntimeError("a secret")

    answer = client.get("/v1/broken")
    found = error(answer, 500)
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in found["message"]


def test_the_routes_are_described(client: TestClient) -> None:
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert "/v1/fine_tuning/jobs/{job_id}/cancel" in paths
