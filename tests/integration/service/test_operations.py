"""What an operator sees of the service: one line a request, errors that are found again, metrics, health."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.api.errors import envelope
from service.jobs.access.keys import create_key
from service.jobs.running import workers
from service.jobs.tables import Stage
from service.logs import JsonLines
from tests import asking
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import SUPERVISED, WORKER, Domain
from tests.offers import GIB, an_offer
from tests.pages import ROOT
from tests.waiting import until


class Lines(logging.Handler):
    """What the process logs, as programs read it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.texts) if line.get("event") == name]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def key(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_a_request_is_one_line_with_whose_it_is_and_how_long_it_took(
    base_url: str, served: Domain, secret: str, lines: Lines
) -> None:
    job = served.submit(SUPERVISED).job.id
    answer = asking.get(f"{base_url}/fine_tuning/jobs/{job}", headers=key(secret))
    (line,) = until(lambda: lines.events("request"))
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["method"], line["status"], line["owner"]) == ("GET", 200, "owner")
    assert line["path"] == f"/v1/fine_tuning/jobs/{job}"
    assert line["route"].endswith("/fine_tuning/jobs/{job_id}")
    assert 0 < line["seconds"] < 600


def test_an_error_of_ours_is_found_by_its_id_with_one_traceback(
    app: FastAPI, base_url: str, secret: str, lines: Lines
) -> None:
    @app.get("/v1/broken")
    def broken() -> None:
        raise RuntimeError("the reason")

    answer = asking.get(f"{base_url}/broken", headers=key(secret))
    assert answer.status_code == 500
    (failed,) = lines.events("request_failed")
    assert failed["request_id"] == answer.headers["x-request-id"]
    assert answer.json()["error"]["message"].count(failed["request_id"]) == 1
    assert "the reason" in failed["traceback"]
    assert sum("Traceback" in text for text in lines.texts) == 1


def test_a_content_that_cannot_be_read_is_in_the_log_with_the_request(
    base_url: str, served: Domain, secret: str, lines: Lines
) -> None:
    served.store.delete(served.data.sha256)
    answer = asking.get(f"{base_url}/files/file-train/content", headers=key(secret))
    (failed,) = lines.events("part_failed")
    assert (answer.status_code, failed["request_id"]) == (500, answer.headers["x-request-id"])
    assert failed["request_id"] in answer.json()["error"]["message"]
    assert served.data.sha256 in failed["error"]


def test_nobody_writes_a_line_of_the_log_and_no_key_is_in_it(
    base_url: str, served: Domain, secret: str, lines: Lines
) -> None:
    forged = '1.2.3.4 - "GET /v1/models HTTP/1.1" 200 OK'
    headers = {"x-forwarded-for": forged, "x-request-id": forged, "user-agent": secret}
    asking.get(f"{base_url}/models?limit={secret}", headers=headers | key(secret))
    asking.get(f"{base_url}/files/{secret}%0aforged%1b[2K", headers=key(secret))
    asking.get(f"{base_url}/models", headers=key("allo-" + "x" * 43))
    until(lambda: len(lines.events("request")) >= 3)
    assert not any(secret in text or "\x1b" in text or "x" * 43 in text or "\n" in text for text in lines.texts)


def metrics(base_url: str, secret: str) -> dict[tuple[str, ...], float]:
    answer = asking.get(base_url.removesuffix("/v1") + "/metrics", headers=key(secret))
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {(one.name, *map(str, one.labels.values())): one.value for family in families for one in family.samples}


def test_metrics_count_requests_stages_bytes_and_devices(base_url: str, served: Domain, secret: str) -> None:
    workers.beat(served.database, WORKER, "host", an_offer(24, 24, slots=100, host=1000))
    served.submit(SUPERVISED)
    served.finish(served.claim())
    running = served.claim().stage_id
    with served.database.transaction() as session:
        session.get_one(Stage, running).devices = ["0"]
    served.submit(replace(SUPERVISED, seed=1))
    meter = create_key(served.database, "operator", ("metrics",)).secret
    asking.get(f"{base_url}/models", headers=key(secret))
    found = until(lambda: (seen := metrics(base_url, meter)).get(("allo_http_bytes_total", "sent")) and seen)
    assert any(name[0] == "allo_http_requests_total" and name[-1] == "200" for name in found)
    assert found[("allo_queue_depth",)] == 1
    assert found[("allo_queue_age_seconds",)] >= 0
    assert found[("allo_stages", "sft", "succeeded")] == 1
    assert found[("allo_stage_seconds_count", "sft")] == 1
    assert found[("allo_stage_attempts_total", "sft")] == 1
    assert found[("allo_bytes", "artifacts")] >= served.data.size
    assert found[("allo_workers",)] == 1
    assert found[("allo_worker_slots", "total", "worker")] == 100
    assert [found[("allo_worker_devices", state, "worker")] for state in ("total", "used")] == [2, 1]
    assert found[("allo_worker_device_bytes", "0", "worker")] == 24 * GIB


def test_the_page_of_operations_names_every_metric(base_url: str, served: Domain, secret: str) -> None:
    page = (ROOT / "service" / "operations.md").read_text(encoding="utf-8")
    text = asking.get(base_url.removesuffix("/v1") + "/metrics", headers=key(secret)).text
    assert [family.name for family in text_string_to_metric_families(text) if family.name not in page] == []


def test_metrics_want_their_scope(base_url: str, served: Domain) -> None:
    reader = create_key(served.database, "owner", ("read",)).secret
    url = base_url.removesuffix("/v1") + "/metrics"
    assert asking.get(url, headers=key(reader)).status_code == 403
    assert asking.get(url).status_code == 401


def test_paths_that_nobody_has_do_not_fill_the_metrics(base_url: str, served: Domain, secret: str) -> None:
    for number in range(20):
        asking.get(f"{base_url}/nothing/{number}", headers=key(secret))
    routes = {name[2] for name in metrics(base_url, secret) if name[0] == "allo_http_requests_total"}
    assert len(routes) < 3


def test_a_broker_that_hangs_holds_up_no_health_check_and_nobody_else(
    base_url: str, served: Domain, secret: str, broker: SilentBroker
) -> None:
    thawed, asked = threading.Event(), []

    def hang() -> None:
        asked.append(1)
        thawed.wait(60)

    broker.ping = hang  # type: ignore[method-assign]
    ready = base_url.removesuffix("/v1") + "/readyz"
    answers: list[httpx.Response] = []
    askers = [threading.Thread(target=lambda: answers.append(asking.get(ready))) for _ in range(60)]
    for asker in askers:
        asker.start()
    until(lambda: asked)
    try:
        assert asking.get(f"{base_url}/models", headers=key(secret)).status_code == 200
        for asker in askers:
            asker.join()
        assert {(answer.status_code, answer.json()["checks"]["broker"]) for answer in answers} == {(503, False)}
        until(lambda: asking.get(ready).json()["checks"]["database"])  # it has a second, and the machine may be busy
        assert len(asked) == 1
    finally:
        thawed.set()
    until(lambda: asking.get(ready).json()["checks"]["broker"])


@pytest.mark.parametrize(("error", "told"), [(28, (507, "disk_full")), (5, (503, "disk_failed"))])
def test_a_disk_that_is_full_or_fails_is_told_in_its_own_words(
    app: FastAPI, base_url: str, secret: str, error: int, told: tuple[int, str]
) -> None:
    @app.get("/v1/disk")
    def disk() -> None:
        raise OSError(error, "of the disk")

    answer = asking.get(f"{base_url}/disk", headers=key(secret))
    assert (answer.status_code, answer.json()["error"]["code"]) == told


def test_an_error_has_the_same_shape_wherever_it_is_made() -> None:
    assert set(json.loads(envelope(408, "late", code="request_timeout"))["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }
