"""How long work stands still: from the death of a host, or of the process that runs a stage, to the stage's next
engine process; and from a job's submission to its first. Production's times, real workers, a trainer without a model.

Each side is the median and the 99th percentile of at least fifty repetitions; the rival is what the settings promise.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import psutil

from service.embedded import broker_url
from service.jobs.access.keys import SCOPES, create_key
from service.jobs.lifecycle import StageStatus
from service.jobs.running import workers
from service.settings import Settings
from tests.benchmarks.case import Case, Figures, Side
from tests.benchmarks.serving import served
from tests.integration.worker.conftest import COLD
from tests.integration.worker.house import OWNER, House, furnish
from tests.integration.worker.processes import Valkey, Worker, kill_tree
from tests.waiting import until
from worker.sweep import STAGE_MARK

REPEATS, SLOTS = 52, 4
DUE = 25.0
"""Seconds that a dead host may cost."""

FOREVER = {"steps": 10**6, "seconds": 0.1}
PROGRAM = " ".join(COLD)


@contextmanager
def housed(**settings: object) -> Iterator[House]:
    """A house with a broker; its trainers never end."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        valkey = Valkey(folder / "broker")
        (control := folder / "control").mkdir()
        shared = {"broker_url": broker_url(folder / "broker"), "store_url": (folder / "store").as_uri()}
        shared |= {
            "engine": f"{PROGRAM} {control}",
            "min_free_bytes": 0,
            "log_level": "WARNING",
            "keep_seconds": 2,
            "slots": SLOTS,
        }
        made = {"data_dir": folder / "0", "database_url": f"sqlite:///{folder / 'allo.db'}"}
        house = furnish(Settings.model_validate(shared | made | settings), control)
        workers.leave(house.database, house.worker)  # it is not there before it is
        house.behave(**FOREVER)
        try:
            yield house
        finally:
            house.database.close()
            valkey.kill()


def joined(house: House, settings: Settings) -> Worker:
    """A worker of a host of its own, once it has said that it is there."""
    there = len(workers.read_workers(house.database))
    worker = Worker(house, settings)
    until(lambda: len(workers.read_workers(house.database)) > there)
    return worker


@contextmanager
def working(house: House) -> Iterator[None]:
    """A worker, which dies at the end with all that it has."""
    worker = joined(house, house.settings)
    try:
        yield
    finally:
        kill_tree(worker.process.pid)


def engines(house: House, after: float = 0.0) -> Mapping[str, psutil.Process]:
    """Each stage's engine that was started after a moment, by its stage."""
    command, found = [*COLD, str(house.control)], {}
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:3] == command and process.create_time() > after:
                found[process.environ()[STAGE_MARK]] = process
        except (psutil.Error, OSError, KeyError):
            continue
    return found


def fruitful(house: House, jobs: Sequence[str]) -> bool:
    """Whether every job's stage runs, and has left a checkpoint further than every one before: a stage fails whose
    lives end three times without one, and lives of seconds may."""
    stages = [house.stage(job) for job in jobs]
    for stage in stages:
        assert stage.status is not StageStatus.FAILED, stage.error
    return all(stage.status is StageStatus.RUNNING and stage.saved_step and not stage.fruitless for stage in stages)


def hosts() -> Figures:
    """A host dies with its stages, again and again: each time another, empty one stands by."""
    took: list[float] = []
    with housed() as house:
        running = joined(house, house.settings)
        try:
            jobs = [house.submit(seed) for seed in range(SLOTS)]
            for number in range(1, 1 + REPEATS // SLOTS):
                folder = house.settings.data_dir.with_name(str(number))
                other = joined(house, house.settings.model_copy(update={"data_dir": folder}))
                until(lambda: fruitful(house, jobs))
                time.sleep(random.uniform(5, 9))  # so that the last beat is not always as old
                before, died = engines(house), time.time()
                kill_tree(running.process.pid)
                running, lost = other, before.keys() - engines(house).keys()
                until(lambda died=died, lost=lost: lost <= engines(house, died).keys())
                took += [engines(house, died)[stage].create_time() - died for stage in lost]
        finally:
            kill_tree(running.process.pid)
    return _told(took)


def processes() -> Figures:
    """The process of the pool that runs a stage is killed; its worker lives."""
    took: list[float] = []
    with housed(slots=1) as house:
        stage_id = house.stage(house.submit()).id
        with working(house):
            died = 0.0
            for _ in range(REPEATS):
                engine = until(lambda died=died: engines(house, died).get(stage_id))
                took += [engine.create_time() - died] if died else []
                time.sleep(random.uniform(2, 4))
                runner = psutil.Process(engine.ppid()).parent()
                assert runner
                died = time.time()
                os.kill(runner.pid, signal.SIGKILL)
    return _told(took)


def submissions() -> Figures:
    """A job is sent over HTTP to a service whose worker is at rest."""
    took: list[float] = []
    with housed(slots=1, serve_idle_seconds=0) as house, working(house):
        key = create_key(house.database, OWNER, SCOPES).secret
        with served(house.settings) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            for seed in range(REPEATS):
                job = {"model": "tiny", "training_file": "file-train", "method": {"type": "supervised"}, "seed": seed}
                sent = time.time()
                answer = client.post("/v1/fine_tuning/jobs", json=job, headers={"Authorization": f"Bearer {key}"})
                job_id = answer.raise_for_status().json()["id"]
                engine = until(lambda sent=sent: next(iter(engines(house, sent).values()), None))
                took.append(engine.create_time() - sent)
                house.cancel(job_id)
                until(lambda job_id=job_id: house.status(job_id) == "cancelled")
    return _told(took)


def _told(took: list[float]) -> Figures:
    assert len(took) >= REPEATS - 2
    ordered = sorted(took)
    return {"median": median(ordered), "p99": ordered[int(len(ordered) * 0.99)], "most": ordered[-1]}


def _promised(seconds: float) -> Figures:
    return {"median": seconds, "p99": seconds, "most": seconds}


def due() -> Figures:
    return _promised(DUE)


def looks() -> Figures:
    """Two looks of the scheduler: one that finds it, one that gives it."""
    return _promised(2 * Settings().dispatch_seconds)


def _cases(measure: str, ours: Side, rival: Side, rival_name: str, limit: str) -> list[Case]:
    return [
        Case(f"{figure} from {measure}, s", ours, rival, lambda: rival_name, 1, False, limit, figure)
        for figure in ("median", "p99")
    ]


_LOOK = f"a look every {Settings().dispatch_seconds:g} s, and the start of two processes"
_LEASE = f"a lease of {Settings().lease_seconds:g} s, {_LOOK}"

CASES = (
    *_cases("a dead host to its stage's next engine", hosts, due, "what is due", _LEASE),
    *_cases("a dead runner to its stage's next engine", processes, looks, "two looks", _LOOK),
    *_cases("a submission to its first engine", submissions, looks, "two looks", _LOOK),
)
