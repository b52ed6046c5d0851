"""A database as it is at one moment, in a file of its own: written while others write to it, and read back.

SQLite copies itself (its online backup); of PostgreSQL `pg_dump` and `pg_restore` do, which must be of the server's
major version or a later one.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url, text
from sqlalchemy.orm import Session

from service.engines import make_engine
from service.migrating import version


class DumpError(Exception):
    """A database that cannot be copied, or brought back; the message says what to do."""


def kind_of(url: str) -> str:
    """`sqlite` or `postgresql`."""
    return "sqlite" if make_url(url).get_backend_name() == "sqlite" else "postgresql"


@contextmanager
def dumped(url: str, target: Path) -> Iterator[Session]:
    """Writes the database to the new file `target`; yields a session that reads that very state. Raises DumpError."""
    copied = _copied_sqlite if kind_of(url) == "sqlite" else _copied_postgres
    with copied(url, target) as session:
        yield session


def check_empty(url: str) -> None:
    """Raises DumpError where a database has our tables already: nothing is ever restored over another."""
    if version(url) is not None:
        shown = make_url(url).render_as_string(hide_password=True)
        raise DumpError(f"{shown} holds a service already: restore into another data folder or an empty database.")


@contextmanager
def loaded(url: str, dump: Path) -> Iterator[str]:
    """Has the database be what the file holds; yields the URL at which it is to be put in order first. With SQLite
    nobody sees it before that is done. One that is there, and has our tables, stays. Raises DumpError."""
    check_empty(url)
    if kind_of(url) == "sqlite":
        with _loaded_sqlite(Path(make_url(url).database or ""), dump) as aside:
            yield aside
    else:
        options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
        _run("pg_restore", url, *options, str(dump))
        yield url


@contextmanager
def _copied_sqlite(url: str, target: Path) -> Iterator[Session]:
    source = make_url(url).database or ""
    if not Path(source).exists():
        raise DumpError(f"There is no database {source}: nothing is here to be backed up.")
    target.touch(mode=0o600)
    with closing(sqlite3.connect(source)) as here, closing(sqlite3.connect(target)) as there:
        here.execute("PRAGMA busy_timeout = 30000")
        here.backup(there)  # all pages in one reading transaction: whoever writes meanwhile is not held up
        there.execute("PRAGMA journal_mode = DELETE")  # one file
        (found,) = there.execute("PRAGMA quick_check").fetchone()
    if found != "ok":
        raise DumpError(f"The database {source} is damaged ({found}): SQLite's `.recover` saves what can be saved.")
    engine = make_engine(f"sqlite:///{target}", None)
    try:
        with Session(engine.execution_options(read_only=True)) as session:
            yield session
    finally:
        engine.dispose()


@contextmanager
def _copied_postgres(url: str, target: Path) -> Iterator[Session]:
    engine = make_engine(url, None)
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            snapshot = connection.scalar(text("SELECT pg_export_snapshot()"))
            _run("pg_dump", url, "--format=custom", f"--snapshot={snapshot}", f"--file={target}")
            with Session(connection) as session:
                yield session
    finally:
        engine.dispose()


@contextmanager
def _loaded_sqlite(database: Path, dump: Path) -> Iterator[str]:
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = database.with_name(database.name + ".restored")
    for left in database.parent.glob(f"{aside.name}*"):  # by one that was killed
        left.unlink()
    aside.touch(mode=0o600)
    shutil.copyfile(dump, aside)
    yield f"sqlite:///{aside}"
    with closing(sqlite3.connect(aside)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # all of it in the one file that gets the name
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(database)


def _run(program: str, url: str, *options: str) -> None:
    """One of PostgreSQL's own programs. The password goes through the environment: command lines are no secret."""
    if shutil.which(program) is None:
        raise DumpError(
            f"{program} is not installed here: a backup of PostgreSQL is made and restored with its own programs. "
            "Install postgresql-client of the server's version or a later one."
        )
    place = make_url(url)
    environment = os.environ | ({"PGPASSWORD": place.password} if place.password else {})
    command = [program, *options, f"--dbname={_of_libpq(place)}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DumpError(f"{program} failed: {done.stderr.strip() or done.returncode}")


def _of_libpq(place: URL) -> str:
    """As PostgreSQL's programs take it, without the password."""
    return place.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
