"""A database and a store with a key, a model and files in them, and a worker's hands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from allo_engine.pipeline import OUTPUTS
from service.db import Base, Database
from service.engines import make_engine
from service.jobs import repository, service
from service.jobs.repository import Page
from service.jobs.running import attempts, dispatch, workers
from service.jobs.running.attempts import Claim
from service.jobs.service import JobView
from service.jobs.submission import NewJob, Sender
from service.jobs.tables import ApiKey, Event, File, Model
from service.storage.store import Blob, Store
from tests.offers import an_offer

OWNER, WORKER = "owner", "worker"


@dataclass
class Domain:
    """What the verbs work on. Every stage's every output is one file: what `made` has for the stage, else `data`."""

    database: Database
    store: Store
    data: Blob
    made: dict[str, Blob] = field(default_factory=dict)

    def add_key(self, key_id: str, owner: str) -> None:
        with self.database.transaction() as session:
            key = ApiKey(id=key_id, hash=key_id, prefix="allo", owner=owner, scopes=["submit"], created_at=0)
            session.add(key)

    def add_file(self, file_id: str, format: str = "problems", **values: Any) -> str:
        file = File(id=file_id, owner=OWNER, purpose="fine-tune", filename="f.jsonl", status="processed", created_at=0)
        file.bytes, file.sha256, file.format, file.rows = self.data.size, self.data.sha256, format, 1
        file.lines_without_solution = []
        for name, value in values.items():
            setattr(file, name, value)
        with self.database.transaction() as session:
            session.add(file)
        return file_id

    def submit(self, new: NewJob, sender: Sender | None = None) -> JobView:
        return service.submit(self.database, self.store, new, sender or self.sender())

    def sender(self, **values: Any) -> Sender:
        return Sender(**{"owner": OWNER, **values})

    def view(self, job_id: str) -> JobView:
        return service.read(self.database, OWNER, job_id)

    def statuses(self, job_id: str) -> dict[str, str]:
        return {stage.name: stage.status.value for stage in self.view(job_id).stages}

    def events(self, job_id: str) -> list[Event]:
        return service.read_events(self.database, OWNER, job_id, Page(10_000, order="asc"))[0]

    def dispatch(self) -> tuple[str, int]:
        ring = dispatch.ready_stages(self.database)[0]
        assert dispatch.place(self.database, self.store, ring.stage_id, ring.epoch, WORKER)
        return ring.stage_id, ring.epoch

    def claim(self) -> Claim:
        """Dispatches and claims the first ready stage."""
        claimed = attempts.claim(self.database, *self.dispatch(), WORKER)
        assert claimed is not None
        return claimed

    def finish(self, claimed: Claim, metrics: Mapping[str, Any] | None = None) -> bool:
        data = self.made.get(claimed.name, self.data)
        files = [(output, "data.bin", data.sha256, data.size) for output in OUTPUTS[claimed.kind]]
        return attempts.finish(self.database, self.store, claimed.stage_id, claimed.epoch, files, metrics or {})

    def run_all(self) -> list[str]:
        """Runs whatever can run to its end; the names of the stages that were computed."""
        done = []
        while rings := dispatch.ready_stages(self.database):
            ring = rings[0]
            if dispatch.place(self.database, self.store, ring.stage_id, ring.epoch, WORKER):
                claimed = attempts.claim(self.database, ring.stage_id, ring.epoch, WORKER)
                assert claimed is not None
                assert self.finish(claimed)
                done.append(claimed.name)
        return done

    def fail_thrice(self) -> None:
        """The first ready stage crashes until it has no attempt left."""
        for _ in range(3):
            claimed = self.claim()
            assert attempts.fail(self.database, claimed.stage_id, claimed.epoch, "crashed", "It crashed.", True)


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Meanwhile another program keeps everyone from writing to the database; who reads may."""
    other = make_engine(database.engine.url.render_as_string(hide_password=False), None)
    with other.connect() as connection, connection.begin() as taken:  # SQLite's is the lock
        if connection.dialect.name == "postgresql":
            tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
            connection.execute(text(f"LOCK TABLE {tables} IN EXCLUSIVE MODE"))
        yield
        taken.rollback()
    other.dispose()


def furnish(database: Database, store: Store) -> Domain:
    domain = Domain(database, store, store.put_stream([b"some content"]))
    domain.add_key("key", OWNER)
    workers.beat(database, WORKER, "host", an_offer(slots=100, host=1000))
    with database.transaction() as session:
        files = [{"path": "model.safetensors", "bytes": domain.data.size, "sha256": domain.data.sha256}]
        session.add(Model(id="tiny", owner=None, created_at=0, files=files))
    for name in ("train", "heldout"):
        domain.add_file(f"file-{name}")
    return domain


SUPERVISED = NewJob("tiny", "file-train", "file-heldout", method="supervised")
"""The stages sft and evaluate."""

ALLO = NewJob("tiny", "file-train", "file-heldout", method="allo")


def in_order(events: list[Event]) -> bool:
    """Whether the events count from 1 without a gap."""
    return [event.seq for event in events] == list(range(1, len(events) + 1))


def stage_by_name(domain: Domain, job_id: str, name: str) -> Any:
    with domain.database.snapshot() as session:
        return next(stage for stage in repository.stages(session, [job_id]) if stage.name == name)
