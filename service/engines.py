"""How both databases are reached: SQLAlchemy engines whose connections wait for nothing without end."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

_MIGRATION_LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Patience:
    """Seconds. `connect`: for a server to take a connection. `statement`: for its answer, whether it computes, has
    frozen or is cut off. `lock`: for another writer to finish."""

    connect: float = 5.0
    statement: float = 30.0
    lock: float = 10.0


def takes_one_writer(url: str) -> bool:
    """Whether only one connection at a time can write."""
    return url.startswith("sqlite")


def make_engine(url: str, patience: Patience | None) -> Engine:
    """The engine of a URL; without patience, a statement may take as long as it takes: a migration does."""
    options = {"pool_size": 20, "max_overflow": 30, "json_deserializer": _read_json}
    if takes_one_writer(url):
        engine = create_engine(url, **options)
        event.listen(
            engine, "connect", partial(_configure_sqlite, patience.lock if patience else _MIGRATION_LOCK_SECONDS)
        )
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(_with_psycopg(url), **options)
    if patience is not None:
        from service.postgres import connector, pinger  # here: where there is none, its driver need not be loaded

        event.listen(engine, "do_connect", connector(patience))
        event.listen(engine, "checkout", pinger(patience))
    return engine


def told(error: SQLAlchemyError) -> str:
    """Why a database cannot be reached, and what to do about it. Knows no password."""
    words = " ".join(str(error.__cause__ or error).split())
    if "no encryption" in words or "server closed the connection unexpectedly" in words:
        return f"{words} Where the server takes connections by TLS alone, ALLO_DATABASE_URL says ?sslmode=verify-full"
    if any(sign in words for sign in ("SSL error", "certificate")):
        return (
            f"{words}: ALLO_DATABASE_URL must have the host's name as the server's certificate does, and the file of "
            "whoever signed it, sslrootcert=FILE (or sslrootcert=system)"
        )
    return words


def _read_json(text: str | bytes) -> Any:
    """As json.loads, in a fraction of the time; that one alone takes half a surrogate pair for a letter."""
    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _with_psycopg(url: str) -> str:
    """`postgres://…` and `postgresql://…` as people write them, for the driver that we install."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else url


def _configure_sqlite(lock: float, connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # pysqlite's own BEGIN comes too late; _begin_sqlite says it
    connection.execute(f"PRAGMA busy_timeout = {round(lock * 1000)}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
