"""Two workers on hosts of their own, network namespaces with an address, a name and a folder each: they share URLs and
nothing else, of PostgreSQL and Valkey behind passwords and TLS, and of a store in S3.

`make test-hosts` runs the real engine on them, too, which takes a minute."""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select, update

from allo_engine.model.shape import Shape
from service.jobs import service
from service.jobs.running import workers
from service.jobs.tables import KeptCheckpoint, Model
from tests.integration.worker.conftest import COLD
from tests.integration.worker.hosts import Host, network
from tests.integration.worker.house import OWNER, House, alive, give_real
from tests.integration.worker.processes import Worker, leftovers
from tests.s3 import Wire, settings_of
from tests.servers import grown
from tests.tls import make_certificates
from tests.waiting import PATIENCE, until
from worker.outcome import Succeeded
from worker.runner import Runner

OF_3B = Shape(3_000_000_000, 12_000_000_000, 28, 3072, 8192, 24, 8, 128, 128256, True, 128256 * 3072)
"""To fine-tune all its weights takes some 50 GiB; to evaluate it, less than 10."""


@dataclass
class Site:
    """A host, the house as it stands there, and its worker once it is started."""

    host: Host
    house: House
    worker: Worker | None = None

    def start(self) -> str:
        """Start the worker, and wait until it has registered; its name."""
        before = registered(self.house)
        self.worker = Worker(self.house, within=self.host.within)
        return str(until(lambda: next(iter(registered(self.house).keys() - before.keys()), "")))


@dataclass
class Sites:
    """`house`: whoever watches, on this machine."""

    house: House
    first: Site
    second: Site


@pytest.fixture(scope="module")
def shared(postgres: str, valkey: Path, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The hosts, and a function of the settings that they share: nothing but URLs."""
    with network("first", "second") as net:
        certificates = make_certificates(tmp_path_factory.mktemp("certificates"), [net.address])
        wire = Wire(s3_endpoint, net.address)
        with grown(net.address, postgres, valkey, certificates) as servers:
            yield net, servers, wire.endpoint
        wire.close()


@pytest.fixture
def lease() -> float:
    """Seconds: in most of these tests nobody dies, and nobody shall be taken for dead."""
    return PATIENCE


@pytest.fixture
def sites(make_house: Callable[..., House], shared: Any, lease: float, tmp_path: Path) -> Iterator[Sites]:
    net, servers, s3 = shared
    with servers.database() as database:
        urls = {"database_url": database, "broker_url": servers.broker_url(), **settings_of(s3, uuid.uuid4().hex)}
        times = {"lease_seconds": lease, "self_fence_seconds": lease / 2, "keep_seconds": 0.1}
        house = make_house("watching", **urls, **times)
        workers.leave(house.database, house.worker)  # there is none
        with house.database.transaction() as session:
            verdict = {"packs": True, "reason": "", "shape": asdict(OF_3B)}
            session.execute(update(Model).values(verdict=verdict))
        first = Site(net.hosts["first"], at(house, tmp_path / "first", "GPU-a=24"))
        second = Site(net.hosts["second"], at(house, tmp_path / "second", "GPU-b=80"))
        yield Sites(house, first, second)
        for site in (first, second):
            if site.worker:
                site.worker.process.kill()
                site.worker.process.wait()
        until(lambda: not leftovers(house))
        house.database.close()


def at(house: House, folder: Path, devices: str) -> House:
    """The house as it stands at another place, where the stand-in for the engine hears and tells apart from others'."""
    folder.mkdir()
    (folder / "control").mkdir()
    engine = shlex.join([*COLD, str(folder / "control")])
    settings = house.settings.model_copy(update={"data_dir": folder / "data", "devices": devices, "engine": engine})
    return replace(house, settings=settings, control=folder / "control")


def registered(house: House) -> dict[str, str]:
    """Each registered worker's host, by its name."""
    return {view.worker.id: view.worker.host for view in workers.read_workers(house.database)}


def kept(house: House) -> list[int]:
    """The steps behind which a checkpoint is in the store."""
    with house.database.snapshot() as session:
        return list(session.scalars(select(KeptCheckpoint.step)))


def ended(house: House, job: str) -> bool:
    return house.status(job) in ("succeeded", "failed")


def test_a_job_waits_for_a_worker_that_is_large_enough_and_runs_on_both_hosts(sites: Sites) -> None:
    house = sites.house
    first = sites.first.start()
    job = house.submit()
    assert [stage.status for stage in house.view(job).stages] == ["ready", "waiting"]
    second = sites.second.start()
    until(lambda: ended(house, job))
    assert house.status(job) == "succeeded", house.view(job).job.error
    placed = {stage.name: (stage.worker, stage.devices) for stage in house.view(job).stages}
    assert placed == {"sft": (second, ["GPU-b"]), "evaluate": (first, ["GPU-a"])}
    if sites.second.host.within:
        assert registered(house) == {first: "first", second: "second"}
    for site in (sites.first, sites.second):
        assert site.worker
        site.worker.stop()
    assert registered(house) == {}, "who ends takes leave"


@pytest.mark.parametrize("lease", [16.0])
@pytest.mark.parametrize("fault", ["dies", "is cut off"])
def test_the_other_host_goes_on_where_one_that(sites: Sites, make_house: Callable[..., House], fault: str) -> None:
    house, first, second = sites.house, sites.first, sites.second
    if not second.host.within:
        pytest.skip("no network namespace may be made here (ip netns add): there is no second host")
    first.house.settings = first.house.settings.model_copy(update={"devices": "GPU-a=90"})
    stricken, other = second.start(), first.start()
    second.house.behave(at={"2": "hold"})
    job = house.submit()
    trainer = psutil.Process(second.house.trainer()["pid"])
    assert trainer.environ()["CUDA_VISIBLE_DEVICES"] == "GPU-b", "80 GiB leave less over than 90"
    until(lambda: 2 in kept(house))
    if fault == "dies":
        second.host.die()
    else:
        second.host.cut()
    until(first.house.starts)
    assert not alive(trainer.pid), "who hears nothing ends its stage before another may begin it"
    until(lambda: ended(house, job))
    assert house.status(job) == "succeeded", house.view(job).job.error
    assert {stage.worker for stage in house.view(job).stages} == {other}
    assert second.house.starts() == [("sft", 0)]
    assert first.house.starts()[0] == ("sft", 2), "the store has what the host had saved"
    assert house.artifact(job) == undisturbed(make_house)
    if fault == "is cut off":
        second.host.mend()
        until(lambda: stricken in registered(house))
        until(lambda: not leftovers(house))


LONG = {"n_epochs": 300, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_seconds": 0.001}
"""A stage of the tiny model that is not at its end before its host is dead."""


@pytest.mark.skipif("REAL_ENGINE" not in os.environ, reason="a minute of the real engine: make test-hosts")
@pytest.mark.parametrize("lease", [16.0])
def test_the_real_engine_ends_in_the_same_bits_where_its_host_dies(
    sites: Sites, make_house: Callable[..., House], tmp_path: Path
) -> None:
    if not sites.second.host.within:
        pytest.skip("no network namespace may be made here (ip netns add): there is no second host")
    house = sites.house
    give_real(house, tmp_path / "given")
    with house.database.transaction() as session:
        session.execute(update(Model).values(verdict=None))  # it is as small as it is
    for site in (sites.first, sites.second):
        real = {"devices": "", "engine": "", "calibrate_seconds": 0}
        site.house.settings = site.house.settings.model_copy(update=real)
    dying = sites.second.start()
    job = trained(house)
    until(lambda: kept(house))
    sites.second.host.die()
    stage = house.stage(job)
    assert (stage.worker, stage.status) == (dying, "running"), "it was in the middle"
    other = sites.first.start()
    until(lambda: ended(house, job))
    assert house.status(job) == "succeeded", house.view(job).job.error
    assert house.stage(job).worker == other
    told = [event.message for event in house.events(job)]
    assert any("which was kept in the store" in message for message in told), told
    assert any("Resumed behind step" in message for message in told), told
    alone = make_house("alone")
    alone.settings = alone.settings.model_copy(update={"engine": ""})
    give_real(alone, tmp_path / "given alone")
    straight = trained(alone)
    assert isinstance(Runner(alone.settings, alone.database, alone.store).run(*alone.dispatch()), Succeeded)
    assert results(house, job) == results(alone, straight)


def trained(house: House) -> str:
    """A job of one stage that trains."""
    new = service.NewJob("tiny", "file-train", method="supervised", stages={"sft": LONG})
    return service.submit(house.database, house.store, new, service.Sender(OWNER)).job.id


def results(house: House, job: str) -> dict[str, str]:
    found = {row.path: row.sha256 for row in house.view(job).artifacts if row.output == "checkpoint"}
    assert any(path.endswith(".safetensors") for path in found)
    return found


def undisturbed(make_house: Callable[..., House]) -> bytes:
    """What the stage makes where nothing happens."""
    alone = make_house("alone", devices="GPU-b=80")
    with alone.database.transaction() as session:
        verdict = {"packs": True, "reason": "", "shape": asdict(OF_3B)}
        session.execute(update(Model).values(verdict=verdict))
    job = alone.submit()
    Runner(alone.settings, alone.database, alone.store).run(*alone.dispatch("GPU-b"))
    return alone.artifact(job)
