"""Workers of two versions at once, while jobs run through: nothing is lost, and results of other code are not mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from allo_engine.source import Source, stage_code
from service.embedded import broker_url
from service.jobs.running import workers
from service.jobs.tables import KeptCheckpoint
from tests.integration.service.domain import in_order
from tests.integration.worker.house import House
from tests.integration.worker.processes import Valkey, Worker
from tests.newer import newer_version, run_newer
from tests.waiting import until
from worker.offer import worker_id

SUBMIT = """
from service.db import Database
from service.jobs import service
from service.storage import open_store

new = service.NewJob("tiny", "file-train", "file-heldout", method="supervised", seed=0)
print(service.submit(Database({!r}), open_store({!r}), new, service.Sender("owner")).job.id)
"""


def ended(house: House, job: str) -> bool:
    status = house.status(job)
    assert status not in ("failed", "cancelled"), house.view(job).job.error
    return status == "succeeded"


def kept(house: House) -> int:
    """The stages that have a checkpoint in the store."""
    with house.database.snapshot() as session:
        return session.scalar(select(func.count(KeptCheckpoint.stage_id.distinct()))) or 0


def test_jobs_run_through_while_a_worker_gives_way_to_one_of_a_newer_version(
    make_house: Callable[..., House], tmp_path: Path
) -> None:
    root = newer_version(tmp_path / "newer")
    newer = Source(root / "allo_engine")
    valkey = Valkey(tmp_path / "broker")
    shared: dict[str, Any] = {"broker_url": broker_url(tmp_path / "broker"), "store_url": (tmp_path / "store").as_uri()}
    house = make_house("older", devices="", slots=2, keep_seconds=0.1, **shared)
    settings = house.settings.model_copy(
        update={"data_dir": tmp_path / "newer-data", "database_url": house.settings.database}
    )
    running = [Worker(house)]
    try:
        before = house.submit(seed=0)
        until(lambda: ended(house, before))
        house.behave(at={"2": "hold"})
        jobs = [house.submit(seed=1), house.submit(seed=2)]
        until(lambda: kept(house) == 2)
        running.append(Worker(house, settings, ("env", f"--chdir={root}", f"PYTHONPATH={root}")))
        until(lambda: worker_id(settings) in [view.worker.id for view in workers.read_workers(house.database)])
        running[0].process.terminate()
        jobs.append(run_newer(root, SUBMIT.format(settings.database, settings.store)).strip())
        jobs.append(house.submit(seed=3))  # a web process of the version before still plans, too
        running[0].stop()
        house.behave()
        until(lambda: all(ended(house, job) for job in jobs))
    finally:
        for worker in running:
            worker.stop()
        valkey.kill()
    assert stage_code("sft") == newer.stage_code("sft")
    assert stage_code("evaluate") != newer.stage_code("evaluate")
    for job in jobs:
        sft, evaluate = house.stage(job, "sft"), house.stage(job, "evaluate")
        assert sft.code == stage_code("sft")
        assert (evaluate.code, evaluate.worker) == (newer.stage_code("evaluate"), worker_id(settings))
    for job in (before, *jobs):
        assert in_order(house.events(job))
    computed = [house.stage(job, name).reused_from is None for job in jobs for name in ("sft", "evaluate")]
    assert computed == [True, True, True, True, False, True, True, True], "what both versions compute alike was kept"
    starts = house.starts()
    assert [name for name, _ in starts].count("evaluate") == 5
    resumed = [step for name, step in starts if name == "sft" and step > 0]
    assert len(resumed) >= 2, "what went from hand to hand went on from where it was"
