"""A worker whose disk is full: the job waits, says why, and goes on from its checkpoint once there is room."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from service.jobs.running import dispatch, workers
from tests.disk import small_disk
from tests.integration.worker.house import House
from tests.waiting import until
from worker.offer import offer, worker_id
from worker.outcome import NoRoom, Released, Succeeded
from worker.runner import Runner


def fill(disk: Path, left: int = 0) -> Path:
    """A file that takes all the room there is, but for so many bytes."""
    path = disk / "filling"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**16)):
                pass
        except OSError:
            file.truncate(file.tell() - left)
    return path


def begin(house: House) -> tuple[threading.Thread, list[object]]:
    outcomes: list[object] = []
    runner, ring = Runner(house.settings, house.database, house.store), house.dispatch()
    thread = threading.Thread(target=lambda: outcomes.append(runner.run(*ring)))
    thread.start()
    return thread, outcomes


@pytest.mark.parametrize("writes", ["the worker", "the engine"])
def test_a_full_disk_costs_no_attempt_and_the_stage_goes_on_once_there_is_room(make_house, tmp_path, writes):
    with small_disk(tmp_path / "data", megabytes=40) as disk:
        house = make_house(database_url=f"sqlite:///{tmp_path / 'allo.db'}")
        house.behave(at={"2": "hold"})
        job = house.submit()
        if writes == "the worker":
            filling = fill(disk, left=4096)  # for the claim's own file
            thread, outcomes = begin(house)
        else:
            thread, outcomes = begin(house)
            until(lambda: house.stage(job).step == 2)
            filling = fill(disk)
        house.behave()
        until(lambda: any("disk is full" in event.message for event in house.events(job)))
        assert house.stage(job).status == "running"
        filling.unlink()
        thread.join()
        assert outcomes == [Released()]
        assert house.stage(job).attempt == 0
        runner = Runner(house.settings, house.database, house.store)
        assert runner.run(*house.dispatch()) == Succeeded({"loss": 0.5})
        assert house.starts()[-1] == ("sft", 2 if writes == "the engine" else 0)


def test_a_stage_goes_on_on_another_worker_that_has_room_and_stays_where_none_has(make_house, tmp_path):
    with small_disk(tmp_path / "data", megabytes=40) as disk:
        apart = {"database_url": f"sqlite:///{tmp_path / 'allo.db'}", "store_url": f"file://{tmp_path / 'store'}"}
        house = make_house(**apart)
        elsewhere = house.settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
        elsewhere.open_data_dir()
        there, has = worker_id(elsewhere), offer(elsewhere)
        workers.beat(house.database, there, "host", replace(has, free_bytes=2**20))
        house.behave(at={"2": "hold"})
        job = house.submit()
        thread, outcomes = begin(house)
        until(lambda: house.stage(job).step == 2)
        fill(disk)
        house.behave()
        until(lambda: any("disk is full" in event.message for event in house.events(job)))
        assert not dispatch.elsewhere(house.database, house.stage(job).id, 2**24)
        assert (house.stage(job).status, house.stage(job).worker) == ("running", house.worker)
        workers.beat(house.database, there, "host", replace(has, free_bytes=2**30))
        thread.join()
        assert outcomes == [NoRoom()]
        stage = house.stage(job)
        assert (stage.status, stage.worker, stage.attempt) == ("dispatched", there, 0)
        runner = Runner(elsewhere, house.database, house.store)
        assert runner.run(stage.id, stage.epoch) == Succeeded({"loss": 0.5})
        assert house.stage(job).attempt == 1
