"""A stage of several processes, the real engine, under the real supervisor and runner."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.jobs import service
from service.settings import Settings
from tests.integration.worker.house import OWNER, House, alive, furnish, give_real
from tests.integration.worker.processes import leftovers
from tests.waiting import PATIENCE, until
from worker.outcome import Failed, Succeeded
from worker.runner import Runner
from worker.starting import Warm

SFT = {"devices": 2, "n_epochs": 60, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_seconds": 0.01}


@pytest.fixture
def house(tmp_path: Path) -> Any:
    """A house whose model and file are real ones."""
    settings = Settings(
        data_dir=tmp_path / "data", heartbeat_seconds=0.2, self_fence_seconds=PATIENCE, lease_seconds=2 * PATIENCE
    )
    house = furnish(settings, tmp_path)
    give_real(house, tmp_path)
    yield house
    house.database.close()


def submitted(house: House) -> str:
    new = service.NewJob("tiny", "file-train", method="supervised", stages={"sft": SFT})
    return service.submit(house.database, house.store, new, service.Sender(OWNER)).job.id


def ranks(house: House) -> list[psutil.Process]:
    """The ranks behind the first, of whatever runs in the house."""
    found = map(psutil.Process, leftovers(house))
    return [process for process in found if process.name().startswith("rank ")]


def test_a_rank_that_is_killed_costs_one_attempt_and_the_job_succeeds(house: House, engine: Warm) -> None:
    job, outcomes = submitted(house), []
    runner, ring = Runner(house.settings, house.database, house.store, start=engine.start), house.dispatch()
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(*ring)))
    thread.start()
    until(lambda: house.stage(job).step)
    (rank,) = ranks(house)
    rank.kill()
    thread.join(PATIENCE)
    (failed,) = outcomes
    assert isinstance(failed, Failed)
    assert failed.retry
    assert not alive(rank.pid)
    assert not leftovers(house)
    assert isinstance(runner.run(*house.dispatch()), Succeeded)
    assert house.status(job) == "succeeded"
    assert house.stage(job).attempt == 2
    assert any(event.message.startswith("Resumed behind step") for event in house.events(job))
