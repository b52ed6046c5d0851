"""A house of one machine for the worker's tests: real database, real store, a stub trainer, short leases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import update

from service.db import Database
from service.jobs import service
from service.jobs.repository import Page
from service.jobs.running import attempts, dispatch, workers
from service.jobs.running.flight import Running
from service.jobs.tables import ApiKey, Event, File, Model, Stage
from service.migrating import migrate
from service.settings import Settings
from service.storage import open_store
from service.storage.store import Store
from tests.servers import closed
from tests.tiny import save_tiny
from tests.unit.engine.pipeline import write_problems
from tests.waiting import until
from worker.offer import offer, worker_id
from worker.starting import Start, start_cold

OWNER = "owner"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class House:
    """Everything that a stage needs but the processes that run it."""

    settings: Settings
    database: Database
    store: Store
    control: Path
    start: Start = start_cold

    @property
    def worker(self) -> str:
        """The name of this house's worker."""
        return worker_id(self.settings)

    def submit(self, seed: int = 0, **values: Any) -> str:
        """A job with a validation file. A supervised one, as it is by default, has the stages sft and evaluate."""
        given = {"method": "supervised"} | values
        new = service.NewJob("tiny", "file-train", "file-heldout", seed=seed, **given)
        return service.submit(self.database, self.store, new, service.Sender(OWNER)).job.id

    def view(self, job_id: str) -> service.JobView:
        return service.read(self.database, OWNER, job_id)

    def status(self, job_id: str) -> str:
        return self.view(job_id).job.status.value

    def stage(self, job_id: str, name: str = "sft") -> Stage:
        return next(stage for stage in self.view(job_id).stages if stage.name == name)

    def events(self, job_id: str) -> list[Event]:
        return service.read_events(self.database, OWNER, job_id, Page(limit=1000, order="asc"))[0]

    def cancel(self, job_id: str) -> None:
        service.cancel(self.database, OWNER, job_id)

    def pause(self, job_id: str) -> None:
        service.pause(self.database, OWNER, job_id)

    def resume(self, job_id: str) -> None:
        service.resume(self.database, self.store, OWNER, job_id)

    def dispatch(self, *devices: str) -> tuple[str, int]:
        """Give the first ready stage to the worker; its (id, epoch) is what a message would carry."""
        stage = dispatch.ready_stages(self.database)[0]
        assert dispatch.place(self.database, self.store, stage.stage_id, stage.epoch, self.worker, devices)
        return stage.stage_id, stage.epoch

    def expire(self) -> None:
        """Be the reaper whose patience has ended."""
        until(lambda: any(self._expire(lease) for lease in dispatch.running_stages(self.database)))

    def _expire(self, lease: Running) -> bool:
        """False where a heartbeat came between looking and taking."""
        return attempts.expire(self.database, lease.stage_id, lease.epoch, lease.beat)

    @contextmanager
    def without_database(self) -> Iterator[None]:
        """Meanwhile its database is out of reach."""
        if self.settings.database_url:
            with closed(self.settings.database_url):
                yield
            return
        path = self.settings.data_dir / "allo.db"
        away, nowhere = path.with_suffix(".away"), path.with_suffix(".nowhere")
        nowhere.symlink_to("nowhere/allo.db")
        away.hardlink_to(path)
        nowhere.replace(path)  # at once: a beat in between would make it anew
        self.database.engine.dispose()  # what is open stays open: the engine's pool must open anew
        yield
        away.replace(path)

    def behave(self, **behaviour: Any) -> None:
        told = self.control / "behaviour"
        told.with_suffix(".new").write_text(json.dumps(behaviour))
        told.with_suffix(".new").replace(told)  # a trainer may be looking

    def starts(self) -> list[tuple[str, int]]:
        """Each start of the trainer: its stage, and the step that it resumed from."""
        path = self.control / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split()[0], int(line.split()[2])) for line in lines]

    def trainer(self) -> dict[str, int]:
        """The present trainer's processes."""
        return {name: int(until(lambda n=name: self._pid(n))) for name in ("pid", "child")}

    def _pid(self, name: str) -> str:
        path = self.control / name
        return path.read_text() if path.exists() else ""

    def artifact(self, job_id: str, name: str = "sft") -> bytes:
        """What the stage's first output file holds, verified."""
        view, stage = self.view(job_id), self.stage(job_id, name)
        row = next(row for row in view.artifacts if row.stage_id == stage.id)
        return b"".join(self.store.open(row.sha256))


def furnish(settings: Settings, control: Path) -> House:
    migrate(settings.database)
    database, store = Database(settings.database), open_store(settings.store, settings.s3)
    blob = store.put_stream([b'{"problem": "1 + 1", "solution": "2"}\n'])
    weights = {"path": "model.safetensors", "bytes": blob.size, "sha256": blob.sha256}
    key = ApiKey(id="key", hash="0" * 64, prefix="allo", owner=OWNER, scopes=["submit"], created_at=0)
    with database.transaction() as session:
        session.add(key)
        session.add(Model(id="tiny", owner=None, created_at=0, files=[weights]))
        for name in ("train", "heldout"):
            file = File(id=f"file-{name}", owner=OWNER, purpose="fine-tune", filename=name, bytes=blob.size, rows=1)
            file.sha256, file.format, file.status, file.created_at = blob.sha256, "problems", "processed", 0
            file.lines_without_solution = []
            session.add(file)
    house = House(settings, database, store, control)
    workers.beat(database, house.worker, "host", offer(settings))
    return house


def give_real(house: House, folder: Path) -> None:
    """Have the house's model and files be real ones, for the real engine; they are made in the folder."""
    give(house, save_tiny(folder / "model"), write_problems(folder / "problems") / "data.jsonl")


def give(house: House, model: Path, problems: Path) -> None:
    """Have the house's model be that of a folder, and its files that of problems."""
    files = [
        {"path": path.name, "bytes": blob.size, "sha256": blob.sha256}
        for path in sorted(model.iterdir())
        if (blob := house.store.put(path))
    ]
    given = house.store.put(problems)
    with house.database.transaction() as session:
        session.execute(update(Model).values(files=files))
        session.execute(update(File).values(sha256=given.sha256, bytes=given.size))
