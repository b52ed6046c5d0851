"""Versions of the service beside one another, and databases that have seen them all."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.operations import MigrateOperation, Operations, ops
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from fastapi.testclient import TestClient

from service.app import create_app
from service.db import Base, Database
from service.jobs import service
from service.jobs.access.keys import create_key
from service.jobs.data.usage import count_active
from service.jobs.repository import Page
from service.jobs.running import attempts, dispatch
from service.jobs.tables import Stage
from service.migrating import TablesTooNew, alembic_config, migrate, newest, version
from service.settings import Settings
from service.storage import open_store
from tests.integration.service.domain import OWNER, SUPERVISED, furnish, in_order
from tests.newer import newer_version, run_newer
from tests.waiting import until

BEFORE_THE_RULE = "v0027"
JOBS = 10_000


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of each kind that no version has seen."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new.db'}"
    base: str = request.getfixturevalue("postgres")
    name = f"upgraded_{abs(hash(request.node.name)):x}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return base.replace("/postgres?", f"/{name}?")


# --- what a migration may do


def revisions() -> list[Script]:
    """From the first on."""
    with sa.create_engine("sqlite://").connect() as connection:
        return list(ScriptDirectory.from_config(alembic_config(connection)).walk_revisions())[::-1]


def done_by(context: MigrationContext, upgrade: Callable[[], None]) -> list[MigrateOperation | str]:
    """What a migration does, which is done; the name alone of what does several things at once."""
    with Operations.context(context) as op:
        found, invoke = list[MigrateOperation | str](), op.invoke

        def recording(operation: MigrateOperation) -> Any:
            found.append(operation)
            return invoke(operation)

        op.invoke = recording
        op.batch_alter_table = lambda *_, **__: pytest.fail("a table that is copied is locked: add to it instead")
        upgrade()
    return found


def takes_away(operation: MigrateOperation | str) -> bool:
    """Whether a process that does not know of it may miss something, or be refused what it writes."""
    match operation:
        case ops.CreateTableOp() | ops.DropIndexOp() | ops.BulkInsertOp():
            return False
        case ops.CreateIndexOp(unique=unique):
            return bool(unique)
        case ops.AddColumnOp(column=column):
            return not (column.nullable or column.server_default is not None)
        case ops.ExecuteSQLOp(sqltext=sql):
            return not str(sql).upper().startswith(("INSERT", "UPDATE"))
    return True


def test_every_migration_adds_or_says_from_which_version_on_it_is_safe() -> None:
    with sa.create_engine("sqlite://").connect() as connection:
        context = MigrationContext.configure(connection)
        for script in revisions():
            done = done_by(context, script.module.upgrade) if script.revision > BEFORE_THE_RULE else []
            if script.revision <= BEFORE_THE_RULE:
                with Operations.context(context):
                    script.module.upgrade()
            oldest = getattr(script.module, "oldest", None)
            assert oldest or not any(map(takes_away, done)), f"{script.path} takes something away: name its oldest"
            assert oldest is None or oldest < script.revision, "the code that does without comes a version before"


def test_what_takes_something_away_is_told_from_what_adds() -> None:
    def added(**column: Any) -> ops.AddColumnOp:
        return ops.AddColumnOp("jobs", sa.Column("later", sa.Integer(), **column))

    adding = [added(nullable=True), added(nullable=False, server_default="0"), ops.CreateTableOp("later", [])]
    adding += [ops.CreateIndexOp("later", "jobs", ["seed"]), ops.ExecuteSQLOp("UPDATE jobs SET later = 1")]
    taking = [added(nullable=False), ops.DropColumnOp("jobs", "seed"), ops.DropTableOp("jobs")]
    taking += [ops.AlterColumnOp("jobs", "seed", modify_nullable=False), ops.RenameTableOp("jobs", "work")]
    taking += [ops.CreateIndexOp("later", "jobs", ["seed"], unique=True), ops.ExecuteSQLOp("DROP TABLE jobs")]
    assert not any(map(takes_away, adding))
    assert all(map(takes_away, taking))


# --- old processes on newer tables


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return newer_version(tmp_path_factory.mktemp("versions") / "newer")


def migrate_newer(root: Path, url: str) -> None:
    run_newer(root, f"from service.migrating import migrate; migrate({url!r})")


def test_old_processes_go_on_and_start_again_on_newer_tables(new_database: str, newer: Path, tmp_path: Path) -> None:
    migrate(new_database)
    database = Database(new_database)
    domain = furnish(database, open_store((tmp_path / "store").as_uri()))
    job = domain.submit(SUPERVISED).job.id
    claimed = domain.claim()
    migrate_newer(newer, new_database)
    assert attempts.heartbeat(database, claimed.stage_id, claimed.epoch, 1, 2, {"loss": 1.0}, saved=1).alive
    assert attempts.record_message(database, claimed.stage_id, claimed.epoch, "info", "A message.")
    assert domain.finish(claimed)
    assert domain.run_all() == ["evaluate"]
    migrate(new_database)  # as every process does that starts again
    app = create_app(Settings(data_dir=tmp_path / "data", database_url=new_database, min_free_bytes=0))
    client = TestClient(app, headers={"authorization": f"Bearer {create_key(database, OWNER, ('admin',)).secret}"})
    asked = {"model": "tiny", "training_file": "file-train", "seed": 1, "method": {"type": "supervised"}}
    other = client.post("/v1/fine_tuning/jobs", json=asked).json()["id"]
    assert domain.run_all() == ["sft"]
    for one in (job, other):
        assert client.get(f"/v1/fine_tuning/jobs/{one}").raise_for_status().json()["status"] == "succeeded"
        assert in_order(domain.events(one))
    app.state.context.close()
    database.close()


@pytest.mark.parametrize("new_database", ["postgresql"], indirect=True)
def test_a_migration_gives_way_to_whoever_reads_what_it_changes(new_database: str, newer: Path) -> None:
    """It has changed some tables and waits for one that a reader has, who goes on to those."""
    migrate(new_database)
    database = Database(new_database)
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'")

    def is_waiting() -> bool:
        with database.snapshot() as session:
            return bool(session.scalar(waiting))

    with ThreadPoolExecutor(1) as hand:
        with database.snapshot() as reader:
            reader.execute(sa.select(Stage.id))
            migrating = hand.submit(migrate_newer, newer, new_database)
            with ThreadPoolExecutor(1) as other:
                until(lambda: other.submit(is_waiting).result() or migrating.done())
            for table in Base.metadata.sorted_tables:
                reader.execute(sa.select(table.c[0]))
        migrating.result()
    assert version(new_database) == "v9999"
    database.close()


def test_a_process_that_is_older_than_the_tables_bear_says_so_and_does_not_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    migrate(url)
    migrate_newer(newer_version(tmp_path / "newer", oldest="v9998"), url)
    with pytest.raises(TablesTooNew, match=f"take processes of v9998 or later; this one is of {newest()}"):
        migrate(url)


# --- from the first version on


def fill(connection: sa.Connection) -> None:
    """Ten thousand jobs as the first version wrote them; the last hundred have a stage that is ready."""
    tables = sa.MetaData()
    tables.reflect(connection)
    jobs, stages, artifacts, events = list[Any](), list[Any](), list[Any](), list[Any]()
    for number in range(JOBS):
        job, done = f"ftjob-{number:08}", number < JOBS - 100
        jobs.append(
            {"id": job, "owner": OWNER, "created_at": number, "status": "succeeded" if done else "queued"}
            | {"model": "tiny", "training_file": "file-train", "sources": {}, "method": {"type": "supervised"}}
            | {"seed": 0, "result_files": [], "cancel_requested": False, "event_count": 3}
        )
        for position, name in enumerate(("sft", "evaluate")):
            status = "succeeded" if done else ("waiting" if position else "ready")
            stages.append(
                {"id": f"{job}-{name}", "job_id": job, "position": position, "name": name, "status": status}
                | {"epoch": 1, "beat": 9, "attempt": 1, "config": {"seed": 0}, "inputs": {}, "metrics": {"loss": 1.0}}
                | {"digest": f"{number:064}"}
            )
            if done:
                artifacts.append(
                    {"id": f"art-{job}-{name}", "stage_id": f"{job}-{name}", "output": "checkpoint", "path": "file"}
                    | {"bytes": 1, "sha256": f"{number:064}", "created_at": number}
                )
        for seq in (1, 2, 3):
            events.append(
                {"id": f"ev-{job}-{seq}", "job_id": job, "seq": seq, "created_at": number, "level": "info"}
                | {"type": "message", "message": "A message.", "data": {}}
            )
    for name, rows in {"jobs": jobs, "stages": stages, "artifacts": artifacts, "events": events}.items():
        connection.execute(tables.tables[name].insert(), rows)


def passed_over(database: Database, ask: Callable[[], object]) -> int:
    """Rows that PostgreSQL reads, as it plans what is asked, only to leave them out."""
    asked = list[tuple[str, Any]]()
    note = lambda _, __, words, values, *___: asked.append((words, values))  # noqa: E731
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")
    sa.event.listen(database.engine, "before_cursor_execute", note)
    ask()
    sa.event.remove(database.engine, "before_cursor_execute", note)
    with database.engine.connect() as connection:
        plans = [
            connection.exec_driver_sql(f"EXPLAIN (ANALYZE) {words}", values).scalars().all() for words, values in asked
        ]
    return sum(int(line.split(": ")[1]) for plan in plans for line in plan if "Rows Removed by" in line)


def test_a_database_of_the_first_version_with_ten_thousand_jobs_comes_to_the_newest(new_database: str) -> None:
    database = Database(new_database)
    with database.engine.begin() as connection:
        command.upgrade(alembic_config(connection), "v0001")
        fill(connection)
    began = time.perf_counter()
    migrate(new_database)
    print(f"{JOBS} jobs from v0001 to {newest()}: {time.perf_counter() - began:.2f} s ({new_database[:6]})")
    page, more = service.read_page(database, OWNER, Page(20))
    assert (len(page), more) == (20, True)
    assert [len(dispatch.ready_stages(database)), len(dispatch.running_stages(database))] == [64, 0]
    with database.snapshot() as session:
        for table, count in {"jobs": JOBS, "stages": 2 * JOBS, "events": 3 * JOBS}.items():
            assert session.scalar(sa.select(sa.func.count()).select_from(sa.table(table))) == count
    if database.engine.dialect.name == "postgresql":
        with database.transaction() as session:  # many wait in a line, none in no line
            session.execute(sa.update(Stage).where(Stage.position == 0).values(status="ready", line="one"))
        assert passed_over(database, lambda: dispatch.look(database)) < JOBS / 10
        assert passed_over(database, lambda: count_active(database, OWNER)) < JOBS / 10
    database.close()
