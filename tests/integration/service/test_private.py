"""Nobody else on the machine reads the data, whatever was left open before; a full disk is told as what it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.db import Database
from service.jobs.access.keys import create_key
from service.settings import Settings
from tests.disk import small_disk
from tests.integration.service.conftest import SilentBroker

LINE = b'{"problem": "p", "solution": "s"}\n'


def upload(client: TestClient, content: bytes) -> Any:
    return client.post("/v1/files", files={"file": ("f.jsonl", content)}, data={"purpose": "fine-tune"})


def open_to_others(folder: Path) -> dict[str, str]:
    found = ((path, path.stat().st_mode) for path in (folder, *folder.rglob("*")))
    return {str(path): oct(mode) for path, mode in found if mode & 0o077}


def test_data_is_private_from_the_start_and_after_an_upgrade(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", min_free_bytes=0)
    for _ in range(2):
        app = create_app(settings, SilentBroker())
        secret = create_key(app.state.context.database, "owner").secret
        client = TestClient(app, headers={"authorization": f"Bearer {secret}"})
        made = upload(client, LINE).json()
        assert client.get(f"/v1/files/{made['id']}/content").content == LINE
        assert open_to_others(tmp_path / "data") == {}
        app.state.context.database.close()
        for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")):
            is_blob = "blobs" in path.parts
            path.chmod(0o755 if path.is_dir() else 0o444 if is_blob else 0o644)  # as earlier versions left it
    create_app(settings, SilentBroker()).state.context.database.close()
    assert open_to_others(tmp_path / "data") == {}
    blobs = [path for path in (tmp_path / "data" / "store" / "blobs").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in blobs} == {"0o400"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        yield disk


def test_a_full_disk_is_told_on_upload_and_nothing_is_half_stored(tmp_path: Path, sqlite: Path, disk: Path) -> None:
    shutil.copyfile(sqlite, tmp_path / "allo.db")
    settings = Settings(
        data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path / 'allo.db'}", store_url=(disk / "s").as_uri()
    )
    app = create_app(settings, SilentBroker())
    secret = create_key(app.state.context.database, "owner").secret
    client = TestClient(app, headers={"authorization": f"Bearer {secret}"})
    refused = upload(client, LINE * 400_000)
    assert refused.status_code == 507, refused.text
    assert refused.json()["error"]["code"] == "disk_full"
    assert "`allo doctor`" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert client.get("/v1/files").json()["data"] == []
    assert [path.name for path in disk.rglob("*") if path.is_file()] == ["lock"]
    assert upload(client, LINE).status_code == 200, "what fits goes on"
    app.state.context.database.close()


def test_a_full_disk_of_the_database_is_told_and_ends_by_itself(tmp_path: Path, sqlite: Path, disk: Path) -> None:
    shutil.copyfile(sqlite, disk / "allo.db")
    settings = Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{disk / 'allo.db'}", min_free_bytes=0)
    app = create_app(settings, SilentBroker())
    database: Database = app.state.context.database
    secret = create_key(database, "owner").secret
    client = TestClient(app, headers={"authorization": f"Bearer {secret}"})
    assert upload(client, LINE).status_code == 200
    with suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    answers = [upload(client, LINE * number) for number in range(1, 30)]
    assert {answer.status_code for answer in answers} <= {200, 507}
    assert answers[-1].json()["error"]["code"] == "disk_full"
    assert client.get("/v1/files").status_code == 200, "reading goes on"
    (disk / "filling").unlink()
    assert upload(client, LINE).status_code == 200
    database.close()
