"""The service and a worker on another machine with a store in S3 between them, and what its absence costs."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.broker import CeleryBroker
from service.jobs.access.keys import create_key
from service.settings import Settings
from tests.integration.worker.house import OWNER, House
from tests.s3 import Wire, settings_of
from tests.waiting import until
from worker.outcome import Outcome, Released, Succeeded
from worker.runner import Runner

LINES = b'{"problem": "1 + 1", "solution": "2"}\n{"problem": "2 + 2", "solution": "4"}\n'


@pytest.fixture
def shared(wire: Wire, tmp_path: Path) -> dict[str, Any]:
    """What both hosts' settings have: URLs."""
    return {"database_url": f"sqlite:///{tmp_path / 'shared.db'}", **settings_of(wire.endpoint, uuid.uuid4().hex)}


@pytest.fixture
def there(make_house: Callable[..., House], shared: dict[str, Any]) -> House:
    """The worker's host, which has never seen what is uploaded."""
    return make_house("there", **shared)


@pytest.fixture
def here(there: House, shared: dict[str, Any], tmp_path: Path) -> Iterator[TestClient]:
    """The service, on a host of its own."""
    settings = Settings(data_dir=tmp_path / "here", min_free_bytes=0, **shared)
    secret = create_key(there.database, OWNER, ("admin",)).secret
    app = create_app(settings, CeleryBroker("redis://127.0.0.1:1/0", "stages"))
    with TestClient(app, headers={"authorization": f"Bearer {secret}"}) as client:
        yield client


def run(house: House, **more: Any) -> Outcome | None:
    return Runner(house.settings, house.database, house.store, **more).run(*house.dispatch())


def uploaded(client: TestClient) -> str:
    answer = client.post("/v1/files", files={"file": ("f.jsonl", LINES)}, data={"purpose": "fine-tune"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def submitted(client: TestClient) -> str:
    new = {"model": "tiny", "training_file": uploaded(client), "method": {"type": "supervised"}}
    answer = client.post("/v1/fine_tuning/jobs", json=new)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_what_is_uploaded_here_is_trained_there_and_downloaded_here(here: TestClient, there: House) -> None:
    job = submitted(here)
    while there.status(job) not in ("succeeded", "failed"):
        assert isinstance(run(there), Succeeded)
    assert there.status(job) == "succeeded"
    for artifact in here.get(f"/v1/fine_tuning/jobs/{job}/artifacts").json()["data"]:
        url = f"/v1/artifacts/{artifact['id']}/content"
        content = here.get(url).content
        assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
        assert here.get(url, headers={"range": "bytes=3-9"}).content == content[3:10]


def test_a_store_that_is_away_is_said_to_be(here: TestClient, wire: Wire) -> None:
    file = uploaded(here)
    wire.bytes_left["out"] = 0
    answer = here.post("/v1/files", files={"file": ("f.jsonl", LINES + LINES)}, data={"purpose": "fine-tune"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
    assert answer.headers["retry-after"]
    assert here.get(f"/v1/files/{file}/content").content == LINES, "it lies at hand"
    wire.mend()
    assert uploaded(here) != file


def test_a_stage_waits_for_its_store_uncounted(there: House, wire: Wire) -> None:
    job = there.submit()
    wire.bytes_left["out"] = 0
    outcomes: list[Outcome | None] = []
    thread = threading.Thread(target=lambda: outcomes.append(run(there)))
    thread.start()
    until(lambda: any("store does not answer" in event.message for event in there.events(job)))
    wire.mend()
    thread.join()
    assert isinstance(outcomes[0], Succeeded)
    assert there.stage(job).status == "succeeded"
    assert there.starts() == [("sft", 0)], "what was trained is not trained again"


def test_a_stage_waits_uncounted_for_a_mounted_store_that_has_lost_its_mount(
    make_house: Callable[..., House], tmp_path: Path
) -> None:
    share, away = tmp_path / "share", tmp_path / "away"
    house = make_house("data", store_url=share.as_uri())
    job, outcomes = house.submit(), list[Outcome | None]()
    given = house.dispatch()
    share.rename(away)
    share.mkdir()
    runner = Runner(house.settings, house.database, house.store)
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(*given)))
    thread.start()
    until(lambda: outcomes or any("store does not answer" in event.message for event in house.events(job)))
    share.rmdir()
    away.rename(share)
    thread.join()
    assert isinstance(outcomes[0], Succeeded)
    assert (house.stage(job).attempt, house.starts()) == (1, [("sft", 0)])


def test_a_worker_that_ends_while_its_store_is_away_gives_the_stage_back_uncounted(there: House, wire: Wire) -> None:
    job = there.submit()
    wire.bytes_left["out"] = 0
    waits = threading.Event()

    def draining() -> bool:
        if any("store does not answer" in event.message for event in there.events(job)):
            waits.set()
        return waits.is_set()

    assert run(there, draining=draining) == Released()
    assert (there.stage(job).status, there.stage(job).attempt) == ("ready", 0)
    wire.mend()
    assert isinstance(run(there), Succeeded)
    assert there.artifact(job)
