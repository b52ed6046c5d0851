"""A service that is destroyed in the middle of a stage is restored elsewhere, and the job ends in the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.cli import main
from service.db import Database
from service.embedded import broker_url
from service.settings import Settings
from service.storage import open_store
from tests.integration.worker.house import House
from tests.integration.worker.processes import Valkey, Worker, kill_tree, leftovers
from tests.integration.worker.test_keeping import rows
from tests.parts import of_embedded
from tests.waiting import until
from worker.runner import Runner
from worker.sweep import sweep


@pytest.fixture
def allo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict]:
    """`allo` with these settings; what it says."""

    def run(settings: Settings, *arguments: str) -> dict:
        for name, value in settings.to_environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        said: dict = json.loads(capsys.readouterr().out)
        return said

    return run


@of_embedded(reason="pg_dump of the package speaks no TLS; those of the service's backups dump PostgreSQL without")
def test_a_job_in_the_middle_of_a_stage_goes_on_where_its_service_is_restored(
    make_house: Callable[..., House], allo: Callable[..., dict], tmp_path: Path
) -> None:
    valkey = Valkey(tmp_path / "broker")
    house = make_house("lost", broker_url=broker_url(tmp_path / "broker"), keep_seconds=0.01)
    house.behave(at={"3": "hold"})
    worker = Worker(house)
    job = house.submit()
    until(lambda: rows(house) and rows(house)[0].step == 3)
    backup = str(tmp_path / "backup")
    saved = allo(house.settings, "backup", backup)
    assert saved["manifest"]["lacking"] == []
    assert list(allo(house.settings, "backup", backup, "--list")) == [saved["name"]]
    kill_tree(worker.process.pid)
    worker.process.wait()
    sweep(house.stage(job).id)
    house.database.close()
    shutil.rmtree(house.settings.data_dir)

    there = house.settings.model_copy(update={"data_dir": tmp_path / "found"})
    assert allo(there, "restore", backup)["jobs"] == 1
    other = replace(house, settings=there, database=Database(there.database), store=open_store(there.store))
    other.behave()
    worker = Worker(other)
    until(lambda: other.status(job) in ("succeeded", "failed"))
    assert other.status(job) == "succeeded", other.view(job).job.error
    assert [step for name, step in other.starts() if name == "sft"][:2] == [0, 3]
    until(lambda: not leftovers(other))
    worker.stop()
    valkey.kill()

    straight = make_house("straight")
    straight.behave()
    uninterrupted = straight.submit()
    Runner(straight.settings, straight.database, straight.store).run(*straight.dispatch())
    assert other.artifact(job) == straight.artifact(uninterrupted)
    other.database.close()


def test_what_cannot_be_restored_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restore", str(tmp_path / "nothing"), "--data-dir", str(tmp_path / "data")]) == 1
    assert "no backup in" in capsys.readouterr().err
    assert main(["backup", str(tmp_path / "backup"), "--data-dir", str(tmp_path / "none")]) == 1
    assert "allo doctor" in capsys.readouterr().err
    assert main(["backup", str(tmp_path / "backup"), "--keep", "0"]) == 1
    assert "--keep 0" in capsys.readouterr().err
