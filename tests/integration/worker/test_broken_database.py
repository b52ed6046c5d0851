"""A PostgreSQL whose clock leaps, or whose disk fails: no lease ends by it, and nothing that was said is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.chaos import preload
from service.chaos.disk import Disk
from service.chaos.ground import forget, postgres_part
from service.chaos.part import Part
from service.jobs.running import attempts, workers
from service.settings import Settings
from tests.clock import Clock
from tests.integration.worker.house import House, furnish
from tests.waiting import until
from worker.leader import Leadership
from worker.offer import offer
from worker.scheduler import Hands, policy_of, tick
from worker.scheduling import Scheduler

MONTH = 30 * 86_400


@dataclass
class Broken:
    """A house on a database of its own, and what that is broken with."""

    house: House
    server: Part
    told: preload.Told
    disk: Disk

    def log(self) -> str:
        return (self.server.folder / "postgres.log").read_text()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    folder = tmp_path_factory.mktemp("broken")
    with ExitStack() as undo:
        server, data, disk = postgres_part(folder)
        undo.callback(forget, data, disk)
        assert server.home
        library = preload.built(server.home)
        if library is None or disk is None:
            pytest.skip("there is no C compiler, or nothing may be mounted")
        server.told = preload.Told(library, server.home / "told", server.user)
        undo.callback(server.kill)
        server.start()
        settings = Settings(
            data_dir=folder / "data",
            database_url=f"postgresql://postgres@/postgres?host={data}",
            self_fence_seconds=6,
            lease_seconds=8,
        )
        house = furnish(settings, folder)
        undo.callback(house.database.close)
        yield Broken(house, server, server.told, disk)


class Deaf:
    """Fulfils `Broker`, and tells nobody."""

    def ring(self, worker: str, stage_id: str, epoch: int) -> None: ...

    def forget(self, worker: str) -> None: ...

    def ping(self) -> None: ...


def server_time(house: House) -> float:
    with house.database.snapshot() as session:
        return float(session.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)


def test_a_database_whose_clock_leaps_ends_no_lease_and_gives_none_away(broken: Broken) -> None:
    house, clock = broken.house, Clock()
    database, scheduler = house.database, Scheduler(policy_of(house.settings))
    first, second = (Leadership(database, name, 0.1, 4, clock) for name in ("first", "second"))
    hands = Hands(database, house.store, Deaf(), clock)

    def pass_time(beats: bool) -> None:
        for _ in range(12):
            clock.now += 1
            workers.beat(database, house.worker, "host", offer(house.settings))
            if beats:
                assert attempts.heartbeat(database, stage_id, 1).alive
                assert first.held()
                assert not second.held()
            tick(scheduler, hands)

    job = house.submit()
    stage_id = house.stage(job).id
    tick(scheduler, hands)
    assert attempts.claim(database, stage_id, 0, house.worker)
    assert first.held()
    for ahead in (MONTH, -MONTH, 0):
        broken.told.tell(ahead=ahead)
        assert abs(server_time(house) - time.time() - ahead) < 3600
        pass_time(beats=True)
    assert (house.stage(job).status, house.stage(job).epoch) == ("running", 1)
    broken.told.tell(ahead=-MONTH)
    pass_time(beats=False)
    assert second.held()
    broken.told.tell()
    assert house.stage(job).status != "running", "who is silent loses its lease, whatever the database's clock says"
    house.cancel(job)
    second.close()


def test_whatever_was_said_is_there_behind_a_failed_flush_and_a_full_disk_of_the_database(broken: Broken) -> None:
    house = broken.house
    said = [house.submit()]
    broken.told.tell(failing=1)
    with suppress(DBAPIError):
        said.append(house.submit(seed=1))
    until(lambda: "could not fsync" in broken.log() or "could not fdatasync" in broken.log())
    broken.server.start()
    said.append(house.submit(seed=2))
    fill = text("CREATE TABLE filling AS SELECT repeat(md5(n::text), 1000) FROM generate_series(1, 100000) n")
    with broken.disk.full(0), pytest.raises(DBAPIError), house.database.transaction() as session:
        session.execute(fill)
    broken.server.start()
    said.append(house.submit(seed=3))
    for job in said:
        house.cancel(job)
        assert house.status(job) == "cancelled"
