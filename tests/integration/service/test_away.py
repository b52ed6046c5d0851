"""Databases that are locked, gone or frozen: whoever waits, waits for a bounded time and hears why."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

from service.app import create_app
from service.chaos.relay import Relay
from service.chaos.wire import Wire
from service.db import Database, is_full, nobody_writes
from service.engines import Patience
from service.jobs.access.keys import create_key
from service.settings import Settings
from tests.apps import on_a_port
from tests.disk import small_disk
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import SUPERVISED, Domain, locked
from tests.waiting import PATIENCE, until


def failure(database: Database) -> OperationalError:
    with pytest.raises(OperationalError) as raised, database.transaction() as session:
        session.execute(text("CREATE TABLE anything (id INTEGER)"))
    database.close()
    return raised.value


def test_a_locked_sqlite_proves_that_nobody_writes(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert nobody_writes(failure(Database(f"sqlite:///{tmp_path / 'a.db'}", patience=Patience(lock=0.1))))


def socket_of(postgres: str) -> Path:
    """The server's."""
    with psycopg.connect(postgres) as connection:
        return Path(connection.info.host) / f".s.PGSQL.{connection.info.port}"


def test_a_way_to_postgresql_that_is_down_for_us_proves_nothing_for_others_go_another(
    postgres: str, tmp_path: Path
) -> None:
    proxy = Relay("127.0.0.1", socket_of(postgres))
    through = f"postgresql://{make_url(postgres).username}@127.0.0.1:{proxy.port}/postgres"
    ours, theirs = Database(through), Database(postgres)
    ours.ping()
    proxy.close()
    for down in (ours, Database(f"postgresql://nobody@/allo?host={tmp_path}")):
        refused = failure(down)
        assert "refused" in str(refused) or "No such file" in str(refused)
        assert not nobody_writes(refused)
    with theirs.transaction() as session:
        assert session.scalar(text("SELECT pg_current_xact_id()")), "others write meanwhile"
    theirs.close()


def test_a_server_that_takes_a_connection_and_says_nothing_proves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/allo"
        assert not nobody_writes(failure(Database(url, patience=Patience(connect=2))))


def test_a_postgresql_that_freezes_is_given_up_after_a_statements_patience(postgres: str) -> None:
    database = Database(postgres, patience=Patience(statement=0.5))
    with database.transaction() as session:
        backend = session.scalar(text("SELECT pg_backend_pid()"))
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(OperationalError, match="said nothing") as raised:
                session.execute(text("SELECT 1"))
        finally:
            os.kill(backend, signal.SIGCONT)
        session.rollback()
    assert not nobody_writes(raised.value)
    database.ping()
    database.close()


def test_a_postgresql_that_freezes_between_two_transactions_is_waited_for_once_and_for_as_long_as_a_connection(
    postgres: str,
) -> None:
    database = Database(postgres, patience=Patience(connect=0.5, statement=PATIENCE))
    with database.snapshot() as session:
        backend = session.scalar(text("SELECT pg_backend_pid()"))
    os.kill(backend, signal.SIGSTOP)
    try:
        with pytest.raises(OperationalError, match=r"said nothing for 0\.5 s"), database.snapshot() as session:
            session.execute(text("SELECT 1"))
    finally:
        os.kill(backend, signal.SIGCONT)
    database.ping()
    database.close()


def test_a_connection_that_was_cut_between_two_transactions_is_opened_anew(postgres: str) -> None:
    database, other = Database(postgres), Database(postgres)
    with database.snapshot() as session:
        backend = session.scalar(text("SELECT pg_backend_pid()"))
    with other.snapshot() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": backend})
    with database.snapshot() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != backend
    for one in (database, other):
        one.close()


def test_whoever_falls_silent_in_the_middle_of_a_transaction_holds_up_nobody_for_long(postgres: str) -> None:
    silent, other = Database(postgres, patience=Patience(statement=0.5)), Database(postgres, patience=Patience(lock=60))
    taken = text("SELECT pg_advisory_xact_lock(1)")
    connection = silent.engine.connect()
    connection.execute(taken)
    with other.transaction() as session:
        session.execute(taken)
    with pytest.raises(DBAPIError, match="idle-in-transaction timeout"):
        connection.execute(text("SELECT 1"))
    connection.close()
    for database in (silent, other):
        database.close()


def test_a_statement_that_computes_too_long_is_ended_by_the_server(postgres: str) -> None:
    database = Database(postgres, patience=Patience(statement=0.1))
    with pytest.raises(OperationalError, match="statement timeout"), database.snapshot() as session:
        session.execute(text("SELECT pg_sleep(600)"))
    database.close()


def test_a_key_that_cannot_be_looked_up_while_one_asks_for_all_is_told_to_come_again(app: FastAPI, secret: str) -> None:
    asked = {"authorization": f"Bearer {secret}"}
    gone = OperationalError("SELECT", {}, psycopg.OperationalError("server closed the connection unexpectedly"))
    with suppress(OperationalError), app.state.context.database._gate.reader():
        raise gone
    with TestClient(app) as client:
        answer = client.get("/v1/files", headers=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")


def test_a_full_disk_of_the_database_is_told_from_a_database_that_is_away(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.transaction() as session:
        session.execute(text("PRAGMA max_page_count = 1"))
        with pytest.raises(OperationalError) as raised:
            session.execute(text("CREATE TABLE anything (id INTEGER)"))
        session.rollback()
    database.close()
    assert is_full(raised.value)
    assert nobody_writes(raised.value), "a stage keeps its lease until there is room"
    assert not is_full(OperationalError("", {}, sqlite3.OperationalError("database is locked")))


def test_a_disk_that_is_full_when_the_database_is_opened_is_told_as_one(tmp_path: Path, sqlite: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=4) as disk:
        shutil.copyfile(sqlite, disk / "allo.db")
        with suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        database = Database(f"sqlite:///{disk / 'allo.db'}")
        with pytest.raises(OperationalError) as raised:
            database.ping()
        assert is_full(raised.value)
        database.close()


def test_while_another_program_writes_reads_are_answered_and_writes_wait_for_a_bounded_time(
    base_url: str, served: Domain, secret: str
) -> None:
    job = served.submit(SUPERVISED).job.id
    url = f"{base_url}/fine_tuning/jobs/{job}"
    writes: list[httpx.Response] = []
    with httpx.Client(headers={"authorization": f"Bearer {secret}"}, timeout=PATIENCE) as client:
        with locked(served.database):
            posts = [threading.Thread(target=lambda: writes.append(client.post(f"{url}/cancel"))) for _ in range(40)]
            for post in posts:
                post.start()
            until(lambda: writes)  # those for whom there is no room hear so at once
            assert (writes[0].status_code, writes[0].headers["retry-after"]) == (503, "2")
            assert client.get(url).json()["status"] == "queued"
            assert client.get(base_url.removesuffix("/v1") + "/healthz").json() == {"status": "ok"}
        for post in posts:
            post.join()
        assert {write.status_code for write in writes} >= {503}
        assert client.get(url).json()["status"] in ("queued", "cancelled")


def test_while_postgresql_hangs_health_is_told_at_once_and_whoever_waited_is_answered(
    postgres: str, tmp_path: Path
) -> None:
    wire = Wire("database", socket_of(postgres))
    user = make_url(postgres).username
    url = f"postgresql://{user}@127.0.0.1:{wire.port}/migrated"
    app = create_app(Settings(data_dir=tmp_path, database_url=url, min_free_bytes=0), SilentBroker())
    database = app.state.context.database
    headers = {"authorization": f"Bearer {create_key(database, 'owner').secret}"}
    with (
        on_a_port(app) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=PATIENCE) as client,
        ThreadPoolExecutor(45) as pool,
    ):
        assert client.get("/v1/files").status_code == 200
        wire.stick("in", "out")
        try:
            waiting = [pool.submit(client.get, "/v1/files") for _ in range(45)]
            until(lambda: database.engine.pool.checkedout() > 10 or waiting[0].done())
            assert client.get("/healthz").json() == {"status": "ok"}
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["database"]) == (503, False)
        finally:
            wire.mend()
        assert {one.result().status_code for one in waiting} <= {200, 503}
        until(lambda: client.get("/v1/files").status_code == 200)
    wire.close()
