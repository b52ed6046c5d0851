"""Brings a database to this version's tables. Alembic is loaded only where there is something to do.

Versions run beside one another while they are exchanged. A migration adds, and what it adds may be left out by whoever
does not know it: older processes run on upon newer tables, and start again there. One that takes something away comes
after the code that does without, and names that code's newest migration as its `oldest`; the tables keep the newest of
these, and a process that is older still refuses to start.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

import migrations
from service.engines import make_engine, told

if TYPE_CHECKING:
    from alembic.config import Config

log = logging.getLogger(__name__)

_LOCK_NUMBER = 4117
_LOCK_SECONDS = 30.0

_GIVES_WAY, _PAUSE_SECONDS, _TABLES_SECONDS = "400ms", 0.5, 60.0
"""For how long a migration waits for PostgreSQL's tables, before it lets go of those that it has, the pause behind
that, and after how long it gives up. The wait is over before the second after which PostgreSQL looks for deadlocks: it
is never those who work meanwhile that are ended for one."""

_HELD = {"55P03", "40P01", "57014"}
"""PostgreSQL's codes for a lock that did not come in time, for a deadlock, and for a statement that took too long."""

_IN_USE = (
    f"A table that is to be changed stayed in use for {_TABLES_SECONDS:g} s, by a backup or a transaction that was "
    "left open (pg_stat_activity shows it); nothing was changed: start again once it has ended."
)


class NoDatabase(Exception):
    """The database is not one to start with, for this reason."""


class TablesTooNew(NoDatabase):
    """It is of a newer version, which does not bear processes as old as this one."""


def migrate(url: str) -> None:
    """Brings the database at `url` to this version's tables, making it where it is absent. One of a newer version is
    left as it is. Raises TablesTooNew where that does not bear this version, NoDatabase where it cannot be reached.

    Processes that start together may all call this: the first one migrates while the others wait.
    """
    try:
        engine = make_engine(url, None)
        try:
            _bring(engine)
        finally:
            engine.dispose()
    except (OperationalError, ArgumentError) as error:
        raise NoDatabase(told(error)) from error
    except sqlite3.DatabaseError as error:  # as it is opened
        raise NoDatabase(f"{engine.url.database}: {error}; `allo restore` takes back a backup") from error


def version(url: str) -> str | None:
    """The revision that the database is at, which is read and nothing else; None of one without tables, or where there
    is none."""
    engine = make_engine(url, None)
    try:
        file = engine.url.database if engine.dialect.name == "sqlite" else None
        if file is not None and not Path(file).exists():  # asking would make it
            return None
        with engine.execution_options(read_only=True).connect() as connection:
            connection.execute(text("SELECT 1"))
        return _version(engine)
    finally:
        engine.dispose()


def newest() -> str:
    """The revision of the newest migration: its file's name begins with it."""
    folder = Path(migrations.__path__[0]) / "versions"
    return max(path.name for path in folder.glob("v*.py")).partition("_")[0]


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for one open connection, without an ini file."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", migrations.__path__[0].replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _bring(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    found = _version(engine)
    if found is None or found < newest():
        _upgrade(engine)
    elif found > newest():
        _run_beside(engine, found)


def _version(engine: Engine) -> str | None:
    """The revision that the database is at; None before the first."""
    try:
        with engine.execution_options(read_only=True).connect() as connection:
            found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
            return found
    except DBAPIError:  # most likely there is no such table; what else is wrong, the upgrade will say
        return None


def _upgrade(engine: Engine) -> None:
    """Tries until no table that is to be changed is in use: who waits for one holds up all who come after."""
    end = time.monotonic() + _TABLES_SECONDS
    while True:
        try:
            return _upgrade_at_once(engine)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) not in _HELD:
                raise
            if time.monotonic() >= end:
                raise NoDatabase(_IN_USE) from error
        time.sleep(_PAUSE_SECONDS)


def _upgrade_at_once(engine: Engine) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})"))
            _take_tables(connection)
        config = alembic_config(connection)
        command.upgrade(config, "head")
        every = ScriptDirectory.from_config(config).walk_revisions()
        if oldest := max((getattr(one.module, "oldest", "") for one in every), default=""):
            connection.execute(text("UPDATE compatibility SET oldest = :oldest"), {"oldest": oldest})


def _take_tables(connection: Connection) -> None:
    """All of ours at once, while nothing is changed yet: behind this it waits for nobody."""
    import service.jobs.tables  # noqa: F401 - fills the metadata
    from service.db import Base

    names = sorted(Base.metadata.tables.keys() & set(inspect(connection).get_table_names()))
    if names:
        connection.execute(text(f"SET LOCAL statement_timeout = '{_GIVES_WAY}'"))
        connection.execute(text(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"))
        connection.execute(text("SET LOCAL statement_timeout = DEFAULT"))


def _run_beside(engine: Engine, found: str) -> None:
    with engine.execution_options(read_only=True).connect() as connection:
        oldest = connection.scalar(text("SELECT oldest FROM compatibility")) or ""
    if oldest > newest():
        raise TablesTooNew(
            f"The database's tables are of {found} and take processes of {oldest} or later; this one is of {newest()}: "
            "start the newer version here, too."
        )
    log.info("tables_newer found=%s known=%s", found, newest())


def _prepare_sqlite(engine: Engine) -> None:
    """Makes the file, which nobody else may read, and turns on WAL, which the file itself remembers."""
    if engine.url.database:
        _make_private(Path(engine.url.database))
    end = time.monotonic() + _LOCK_SECONDS
    connection = engine.raw_connection()
    try:
        while not _turned_on_wal(connection.cursor(), last_try=time.monotonic() >= end):
            time.sleep(0.02)
    finally:
        connection.close()


def _turned_on_wal(cursor: Any, last_try: bool) -> bool:
    """This one statement does not wait for another process that is at it, whatever the busy timeout says."""
    try:
        cursor.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError:
        if last_try:
            raise
        return False
    return True


def _make_private(path: Path) -> None:
    """Of the database and what lies beside it. SQLite gives its other files the mode of the first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        with suppress(FileNotFoundError, PermissionError):  # it is not there, or others own it
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)
