"""`allo doctor` looks, and leaves everything as it found it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from service.cli import main
from service.db import Database
from service.jobs.tables import File
from service.migrating import migrate
from service.settings import Settings
from service.storage import open_store
from tests.rot import flip_a_bit


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mode) for path in folder.rglob("*")}


def test_of_a_machine_without_a_service_it_makes_nothing(tmp_path: Path) -> None:
    assert main(["doctor", "--data-dir", str(tmp_path / "data")]) == 0
    assert contents(tmp_path) == {}


def test_of_an_older_database_it_says_so_and_brings_it_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(tmp_path / "allo.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('v0001')")
        database.commit()
    before = contents(tmp_path)
    assert main(["doctor", "--data-dir", str(tmp_path)]) == 1
    assert "its tables are of v0001" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_what_is_held_by_whom_is_told_as_json_and_mend_asks_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path)
    migrate(settings.database)
    store = open_store(settings.store)
    blob = store.put_stream([b"rotten"])
    flip_a_bit(store, blob.sha256)
    held = store.put_stream([b"somebody's"])
    database = Database(settings.database)
    file = File(id="file-1", owner="alice", purpose="fine-tune", filename="f", status="processed", created_at=0)
    file.bytes, file.sha256, file.lines_without_solution = held.size, held.sha256, []
    with database.transaction() as session:
        session.add(file)
    database.close()
    doctor = ["doctor", "--data-dir", str(tmp_path), "--json"]
    assert main([*doctor, "--verify"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["checks"]["database"], found["verify"]["damaged"]) == ("ok", [blob.sha256])
    assert found["content"] == {
        "alice": {"contents": 1, "bytes": held.size},
        "nobody": {"contents": 1, "bytes": blob.size},
    }
    assert found["workers"] == []
    assert main([*doctor, "--mend"]) == 1
    assert "--yes" in capsys.readouterr().err
    assert store.exists(blob.sha256)
    assert main([*doctor, "--mend", "--yes"]) == 0
    assert json.loads(capsys.readouterr().out)["mend"]["set_aside"] == 1
    assert main([*doctor, "--verify"]) == 0
    assert not store.exists(blob.sha256)
