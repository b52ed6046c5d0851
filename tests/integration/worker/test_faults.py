"""A real Celery worker on a real broker, with real kills: the job always ends, once, and nothing is left running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from service.broker import CeleryBroker
from service.jobs.lifecycle import JOB_ENDED
from service.jobs.running import workers
from service.jobs.tables import Job
from tests.integration.worker.conftest import SHORT_LEASE, building
from tests.integration.worker.house import House, alive
from tests.integration.worker.processes import Valkey, Worker, leftovers
from tests.parts import GROWN, Parts
from tests.tls import Certificates
from tests.waiting import PATIENCE, until


@pytest.fixture
def broker(tmp_path: Path, certificates: Certificates) -> Iterator[Valkey]:
    valkey = Valkey(tmp_path / "data", certificates if GROWN else None)
    yield valkey
    valkey.close()


@contextmanager
def working(house: House) -> Iterator[Worker]:
    worker = Worker(house)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()
        until(lambda: not leftovers(house))


@dataclass
class Shared:
    """A house, its broker and its worker, which are slow to start."""

    house: House
    broker: Valkey
    worker: Worker


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, parts: Parts, certificates: Certificates) -> Iterator[Shared]:
    root = tmp_path_factory.mktemp("shared")
    with closing(Valkey(root / "data", certificates if GROWN else None)) as broker, building(root, parts) as make:
        house = make("data", broker_url=broker.url)
        with working(house) as worker:
            yield Shared(house, broker, worker)


@pytest.fixture
def house(shared: Shared) -> Iterator[House]:
    """The shared one, as if nothing had been run in it."""
    house = shared.house
    house.behave()
    for path in house.control.iterdir():
        if path.name != "behaviour":
            path.unlink()
    yield house
    with house.database.snapshot() as session:
        left = list(session.scalars(select(Job.id).where(Job.status.not_in(JOB_ENDED))))
    for job in left:
        house.cancel(job)
    until(lambda: not leftovers(house))


@pytest.fixture
def worker(house: House, shared: Shared) -> Worker:
    """At work in the house."""
    if shared.worker.process.poll() is not None:
        shared.worker.start()
    return shared.worker


def succeeded_once(house: House, job: str) -> bool:
    """The job's end, and its invariants: one commit a stage, events without a gap, every artifact verifies."""
    until(lambda: house.status(job) in ("succeeded", "failed"))
    events = house.events(job)
    commits = [event.message for event in events if "succeeded." in event.message]
    assert commits == ["Stage sft: succeeded.", "Stage evaluate: succeeded."]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert house.artifact(job)
    return house.status(job) == "succeeded"


@pytest.fixture
def patient(make_house, broker) -> House:
    """A house in which whoever waits for a lease waits for longer than any test."""
    forever = {"lease_seconds": 20 * PATIENCE, "self_fence_seconds": 10 * PATIENCE, "redispatch_seconds": 20 * PATIENCE}
    return make_house("data", broker_url=broker.url, **forever)


def test_a_job_survives_sigkill_of_every_process_and_waits_for_no_lease(patient):
    """One after the other, of the same worker."""
    house = patient
    with working(house) as worker:
        for seed, victim in enumerate(("trainer", "supervisor", "child", "worker")):
            house.behave(at={"2": "hold"})
            before = len(house.starts())
            job = house.submit(seed)
            until(lambda: len(house.starts()) > before)  # noqa: B023 - asked at once
            parts = worker.parts()
            until(lambda: house.stage(job).step == 2)  # noqa: B023
            os.kill(parts[victim], signal.SIGKILL)
            until(lambda: not alive(parts["trainer"]))  # noqa: B023
            if victim == "worker":
                worker.process.wait()
                worker.start()
            house.behave()
            assert succeeded_once(house, job), victim
            stage, step = house.starts()[before + 1]
            assert stage == "sft"
            assert step > 0, "it should have gone on from a checkpoint"
        worker.stop()
        assert not list((house.settings.data_dir / "claims").iterdir())


def test_a_cancel_while_training_leaves_no_process_within_ten_seconds(house, worker):
    house.behave(at={"1": "hang"})
    job = house.submit(seed=1)
    parts = worker.parts()
    house.cancel(job)
    until(lambda: not leftovers(house))
    until(lambda: house.status(job) == "cancelled")
    assert not alive(parts["trainer"])
    assert alive(parts["child"])


def test_a_paused_job_frees_its_slot_for_another_and_goes_on_from_its_checkpoint(house, worker):
    house.behave(at={"2": "hold"})
    first = house.submit(seed=2)
    worker.parts()
    until(lambda: house.stage(first).step)
    house.pause(first)
    until(lambda: house.stage(first).status == "waiting")
    house.behave()
    second = house.submit(seed=3)
    assert succeeded_once(house, second)
    assert house.status(first) == "paused"
    house.resume(first)
    assert succeeded_once(house, first)
    assert house.stage(first).attempt == 1
    assert house.starts()[-2][0] == "sft"
    assert house.starts()[-2][1] > 0


def test_every_slot_has_a_device_of_its_own(make_house, broker):
    house = make_house("data", broker_url=broker.url, slots=2, devices="7,GPU-5f3c")
    house.behave(at={"1": "hang"})
    jobs = [house.submit(seed) for seed in (1, 2)]
    worker = Worker(house)
    until(lambda: len(house.starts()) == 2)
    trainers = [int(line.split()[1]) for line in (house.control / "starts").read_text().splitlines()]
    assert {psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"] for pid in trainers} == {"7", "GPU-5f3c"}
    for job in jobs:
        house.cancel(job)
    until(lambda: not leftovers(house))
    worker.stop()


def test_a_machine_that_sleeps_past_every_lease_costs_no_attempt(make_house, broker):
    house = make_house("data", broker_url=broker.url, **SHORT_LEASE)
    with working(house) as worker:
        house.behave(at={"2": "hold"})
        job = house.submit()
        until(lambda: house.stage(job).step == 2)
        top = psutil.Process(worker.process.pid)
        tree = [top, *top.children(recursive=True)]
        for process in tree:
            process.suspend()
        time.sleep(1.5 * house.settings.lease_seconds)
        for process in tree:
            process.resume()
        house.behave()
        assert succeeded_once(house, job)
        assert house.stage(job).attempt == 1, "whether its supervisor wakes before a beat comes, and ends it, or behind"


def test_a_host_that_is_renamed_under_its_worker_goes_on_with_the_next_stage(make_house, broker):
    if os.geteuid():
        pytest.skip("whoever is not root may give a process no name of a host of its own")
    house = make_house("data", broker_url=broker.url)
    (before,) = workers.read_workers(house.database)
    worker = Worker(house, within=(shutil.which("unshare") or "", "--uts"))
    try:
        until(lambda: workers.read_workers(house.database)[0].worker.beat > before.worker.beat + 1)
        _within_names_of(worker.process.pid, "hostname", "renamed")
        assert succeeded_once(house, house.submit())
        assert [view.worker.id for view in workers.read_workers(house.database)] == [before.worker.id]
    finally:
        worker.process.kill()
        worker.process.wait()
        until(lambda: not leftovers(house))


def _within_names_of(pid: int, *command: str) -> None:
    """Run a command where a process has the name of its host."""
    nsenter = shutil.which("nsenter") or ""
    subprocess.run([nsenter, f"--uts=/proc/{pid}/ns/uts", *command], check=True)


def test_the_same_message_a_hundred_times_is_one_run(house, worker):
    house.behave(at={"1": "hold"})
    job = house.submit(seed=4)
    worker.parts()
    stage = house.stage(job)
    broker = CeleryBroker(house.settings.broker_url, house.settings.queue)
    for _ in range(100):
        broker.ring(house.worker, stage.id, 0)
    house.behave()
    assert succeeded_once(house, job)
    assert house.starts() == [("sft", 0), ("evaluate", 0)]


def test_what_was_said_to_a_worker_that_is_gone_is_dropped(broker):
    bell = CeleryBroker(broker.url, "stages")
    for worker in ("gone", "here"):
        bell.ring(worker, "stage-1", 0)
    bell.forget("gone")
    with broker.client() as server:
        assert server.llen("stages.here") == 1
        assert server.keys("*gone*") == []
        bell.ring("gone", "stage-2", 0)
        assert server.llen("stages.gone") == 1, "it was only away"


def test_sigterm_drains_and_the_next_worker_goes_on(house, worker):
    house.behave(at={"2": "hold"})
    job = house.submit(seed=5)
    worker.parts()
    until(lambda: house.stage(job).step)
    worker.stop()
    assert worker.process.returncode == 0
    assert house.stage(job).attempt == 0
    assert leftovers(house) == []
    house.behave()
    worker.start()
    assert succeeded_once(house, job)
    assert house.stage(job).attempt == 1


@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_is_closed_ends_a_worker_as_sigterm_does_and_nohup_keeps_it(make_house, broker, nohup):
    house = make_house("data", broker_url=broker.url)
    worker = Worker(house, within=("nohup",) if nohup else ("env", "--default-signal=HUP"))  # whoever runs this test
    try:
        house.behave(at={"2": "hold"})
        job = house.submit()
        until(lambda: house.stage(job).step == 2)
        os.killpg(worker.process.pid, signal.SIGHUP)
        if not nohup:
            assert worker.process.wait(PATIENCE) == 0
            assert (house.stage(job).status, house.stage(job).attempt) == ("ready", 0)
            worker.start()
        house.behave()
        assert succeeded_once(house, job)
        assert house.stage(job).attempt == 1
    finally:
        worker.process.kill()
        worker.process.wait()
        until(lambda: not leftovers(house))


def test_a_broker_that_dies_and_forgets_everything_delays_and_loses_nothing(house, shared, worker):
    house.behave(at={"1": "hold"})
    first, second = house.submit(seed=6), house.submit(seed=7)
    worker.parts()
    shared.broker.kill()
    house.behave()
    until(lambda: house.stage(first).status == "succeeded")
    shared.broker.start()
    assert succeeded_once(house, first)
    assert succeeded_once(house, second)


def test_a_scheduler_holds_nothing_open_of_its_workers_is_there_again_once_killed_and_ends_with_it(worker):
    first = until(lambda: scheduler_of(worker))
    until(lambda: not talking(first.pid) & talking(worker.process.pid))
    first.kill()
    until(lambda: not alive(first.pid))
    second = until(lambda: scheduler_of(worker))
    worker.process.kill()
    worker.process.wait()
    until(lambda: not alive(second.pid))


def scheduler_of(worker: Worker) -> psutil.Process | None:
    command = [sys.executable, "-m", "worker.scheduler"]
    children = psutil.Process(worker.process.pid).children()
    return next((child for child in children if alive(child.pid) and child.cmdline()[:3] == command), None)


def talking(pid: int) -> set[str]:
    """The pipes and sockets that a process has open, beside its standard streams."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed by now
            found.add(str(path.readlink()) if int(path.name) > 2 else "")
    return {kind for kind in found if kind.startswith(("pipe:", "socket:"))}


def test_what_a_worker_and_its_scheduler_log_are_events_with_their_ids(make_house, broker):
    house = make_house("data", broker_url=broker.url, log_format="json")
    job = house.submit()
    worker = Worker(house)
    assert succeeded_once(house, job)
    worker.stop()
    written = worker.log.read_text().replace("worker: Warm shutdown (MainProcess)", "")  # Celery's signal handler
    lines = [json.loads(line) for line in written.splitlines() if line]
    assert all(line["time"] and line["level"] and line["logger"] for line in lines)
    (claimed,) = (line for line in lines if line.get("event") == "stage_claimed" and line["name"] == "sft")
    assert (claimed["job_id"], claimed["owner"]) == (job, "owner")
    assert {"stage_rung", "stage_ended"} <= {line.get("event") for line in lines}
