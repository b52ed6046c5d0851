"""The database: one engine a process, and `transaction()`, which holds the only commit of the service.

SQLite (WAL) and PostgreSQL are both first-class. A SQLite transaction that may write takes the write lock at its start
(BEGIN IMMEDIATE): a lock taken halfway cannot wait for another writer, it can only fail.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Session

import migrations

SQLITE_BUSY_MS = 30_000


class Base(DeclarativeBase):
    """Every table. Constraints get names, so that a migration can name them on both databases."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Database:
    """An engine, and the two ways into it. `clock` gives wall-clock seconds; tests bring their own."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time) -> None:
        self.engine = _engine(url)
        self._reader = self.engine.execution_options(read_only=True)
        self._clock = clock

    def now(self) -> int:
        """Unix seconds, for people to read: no decision between processes rests on it."""
        return int(self._clock())

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Everything in the block happens, or none of it. Rows stay readable after the block."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session
            session.commit()

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction that only reads: it waits for no writer, and what it changes is dropped."""
        with Session(self._reader, expire_on_commit=False) as session:
            yield session
            session.expunge_all()

    def ping(self) -> None:
        """Raises where the database does not answer."""
        with self._reader.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Closes every pooled connection."""
        self.engine.dispose()


def migrate(url: str) -> None:
    """Brings the database at `url` to this version's tables, making it where it is absent.

    Processes that start together may all call this: the first one migrates while the others wait.
    """
    engine = _engine(url)
    try:
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(4117)"))
            command.upgrade(alembic_config(connection), "head")
    finally:
        engine.dispose()


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for one open connection, without an ini file."""
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0].replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(_with_psycopg(url), pool_pre_ping=True, pool_size=20, max_overflow=30)
    engine = create_engine(url, pool_size=20, max_overflow=30)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _with_psycopg(url: str) -> str:
    """`postgres://…` and `postgresql://…` as people write them, for the driver that we install."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else url


def _configure_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # pysqlite's own BEGIN comes too late; _begin_sqlite says it
    connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _prepare_sqlite(engine: Engine) -> None:
    """Makes the file's folder and turns on WAL, which the file itself remembers."""
    if engine.url.database:
        Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
