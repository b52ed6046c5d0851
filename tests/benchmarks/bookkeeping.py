"""What the database is asked beside the work itself, on SQLite and PostgreSQL: a scheduler's look and a page of events
with many jobs against few, and claims of eight processes against an update of one row that asks nothing first."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
from sqlalchemy import insert, inspect, select, update

from service.db import Database
from service.jobs import service
from service.jobs.lifecycle import StageStatus
from service.jobs.repository import Page
from service.jobs.running import attempts
from service.jobs.tables import Event, Job, Stage
from service.settings import Settings
from tests.benchmarks import service as finished
from tests.benchmarks.case import Case, Figures
from tests.integration.worker.house import OWNER, House, furnish
from tests.servers import postgres_server
from worker.scheduler import look

REPEATS, PROCESSES, CLAIMS = 30, 8, 800
FEW, MANY, EVENTS = 100, 10_000, 1_000_000
DATABASES = ("sqlite", "postgresql")
_AT_ONCE = 10_000


@contextmanager
def housed(kind: str) -> Iterator[House]:
    """A house with a worker and a job that waits."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder) / "data", min_free_bytes=0)
        if kind == "sqlite":
            yield furnish(settings, Path(folder))
            return
        with postgres_server() as url:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = on")
                connection.execute("SELECT pg_reload_conf()")
            house = furnish(settings.model_copy(update={"database_url": url}), Path(folder))
            yield house
            house.database.close()


def waiting(house: House, jobs: int, **values: Any) -> list[str]:
    """So many jobs that wait for a worker, each like one that was submitted, with other data; their first stages."""
    job_id = house.submit()
    with house.database.snapshot() as session:
        job = _values(session.get_one(Job, job_id))
        stages = [_values(stage) for stage in session.scalars(select(Stage).where(Stage.job_id == job_id))]
    names = [f"ftjob-waits-{number:08d}" for number in range(jobs)]
    rows = [
        stage | {"id": f"{stage['name']}-{name}", "job_id": name, "digest": name.rjust(64, "0")}
        for name in names
        for stage in stages
    ]
    first = {f"{stages[0]['name']}-{name}" for name in names}
    with house.database.transaction() as session:
        session.execute(insert(Job), [job | {"id": name} for name in names])
        session.execute(insert(Stage), [row | values if row["id"] in first else row for row in rows])
    return sorted(first)


def settle(database: Database) -> None:
    """What PostgreSQL does by itself in the minutes behind so many rows, and would do beside what is measured."""
    if database.engine.dialect.name == "postgresql":
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for word in ("VACUUM (ANALYZE)", "CHECKPOINT"):
                connection.exec_driver_sql(word)


def told(database: Database, job_id: str, events: int) -> None:
    """So many events of a job."""
    event = {"job_id": job_id, "created_at": 1, "level": "info", "message": "A message.", "type": "message", "data": {}}
    for first in range(1, events + 1, _AT_ONCE):
        rows = [event | {"id": f"event-{n:08d}", "seq": n} for n in range(first, min(first + _AT_ONCE, events + 1))]
        with database.transaction() as session:
            session.execute(insert(Event), rows)


def asked(kind: str, jobs: int, events: int) -> Figures:
    """Milliseconds of a look, and of a page at the end of a job's events."""
    with housed(kind) as house:
        waiting(house, jobs)
        finished.fill(house.database, jobs)
        told(house.database, "ftjob-00000000", events)
        settle(house.database)
        page = Page(limit=20, order="desc")
        return {
            "look": _milliseconds(lambda: look(house.database)),
            "events": _milliseconds(lambda: service.read_events(house.database, OWNER, "ftjob-00000000", page)),
        }


def claimed(kind: str, claim: Callable[[Database, str], object]) -> Figures:
    """Claims a second, of eight processes at once."""
    with housed(kind) as house:
        placed = {"status": StageStatus.DISPATCHED, "worker": "worker", "dispatched_at": 1}
        stages = waiting(house, CLAIMS, **placed)
        shares = [stages[number::PROCESSES] for number in range(PROCESSES)]
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager, ProcessPoolExecutor(PROCESSES, context) as pool:
            line = manager.Barrier(PROCESSES)
            found = list(pool.map(partial(_claim_all, house.settings.database, claim, line), shares))
    return {"": (CLAIMS - PROCESSES) / (max(end for _, end in found) - min(begin for begin, _ in found))}


def _claim_all(url: str, claim: Callable[[Database, str], object], line: Any, stages: list[str]) -> tuple[float, float]:
    database = Database(url)
    claim(database, stages[0])  # the first makes its statements, as a worker does once
    line.wait()
    began = time.monotonic()
    for stage in stages[1:]:
        assert claim(database, stage)
    ended = time.monotonic()
    database.close()
    return began, ended


def ours(database: Database, stage: str) -> object:
    """A claim, with all that belongs to it: its job's row locked, an event, its inputs' names."""
    return attempts.claim(database, stage, 0, "worker")


def bare(database: Database, stage: str) -> object:
    """One row of one table, in a transaction."""
    with database.transaction() as session:
        row = update(Stage).where(Stage.id == stage, Stage.epoch == 0).values(epoch=1, status=StageStatus.RUNNING)
        return session.execute(row).rowcount  # type: ignore[attr-defined]


def _values(row: Job | Stage) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in inspect(type(row)).column_attrs}


def _milliseconds(ask: Callable[[], object]) -> float:
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        ask()
        took.append(time.perf_counter() - began)
    return median(took) * 1000


def _of(kind: str) -> list[Case]:
    many, few = partial(asked, kind, MANY, EVENTS), partial(asked, kind, FEW, FEW)
    name = lambda: f"of {FEW} jobs and events"  # noqa: E731
    flat = "an index: what is read is as much"
    return [
        Case(
            f"a scheduler's look, {MANY:,} jobs waiting and as many ended, {kind}, ms",
            many,
            few,
            name,
            1.2,
            False,
            flat,
            "look",
        ),
        Case(f"the last page of {EVENTS:,} events, {kind}, ms", many, few, name, 1.2, False, flat, "events"),
        Case(
            f"claims a second of {PROCESSES} processes, {kind}",
            partial(claimed, kind, ours),
            partial(claimed, kind, bare),
            lambda: "an update of one row",
            0.2,
            True,
            "SQLite: one writer at once; PostgreSQL: a write to the disk a claim",
        ),
    ]


CASES = tuple(case for kind in DATABASES for case in _of(kind))
