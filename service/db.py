"""The database: one engine a process, and `transaction()`, which holds the only commit of the service.

SQLite (WAL) and PostgreSQL are both first-class. A SQLite transaction that may write takes the write lock at its start
(BEGIN IMMEDIATE): a lock taken halfway cannot wait for another writer, it can only fail.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import MetaData, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session

from service.engines import Patience, make_engine
from service.gate import Gate

_FULL = {"53100", sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}
"""PostgreSQL's code for a full disk, and SQLite's: the second is of an index of its log that finds no room when the
database is opened."""


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


_OPEN: ContextVar[tuple[Database | None, Session | None]] = ContextVar("open", default=(None, None))
"""The transaction that is under way in this thread, and whose it is."""


class Database:
    """An engine, and the two ways into it. `clock` gives wall-clock seconds; tests bring their own.

    `gate` is for a process in which many threads want to write at once: it bounds how many wait.
    """

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = time.time,
        patience: Patience | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.engine = make_engine(url, patience or Patience())
        self._reader = self.engine.execution_options(read_only=True)
        self._clock, self._gate = clock, gate or Gate()
        self._watcher: Any = None
        self._watching = threading.Lock()

    def now(self) -> int:
        """Unix seconds, for people to read: no decision between processes rests on it."""
        return int(self._clock())

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """Everything in the block happens, or none of it. Rows stay readable after the block.

        Inside another transaction of the same thread it is a part of that one, which alone commits.
        """
        outer = self._joined()
        if outer is not None:
            yield outer
            outer.flush()
            return
        with self._gate.writer(), Session(self.engine, expire_on_commit=False) as session:
            token = _OPEN.set((self, session))
            try:
                yield session
                session.commit()
            finally:
                _OPEN.reset(token)

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        """A transaction that only reads: it waits for no writer, and what it changes is dropped. Inside a transaction
        it reads as that does."""
        outer = self._joined()
        if outer is not None:
            yield outer
            return
        with self._gate.reader(), Session(self._reader, expire_on_commit=False) as session:
            yield session
            session.expunge_all()

    def version(self) -> str:
        """A word that stays the same for as long as nobody commits: two readings that agree saw the same content.

        PostgreSQL's names the transactions that a snapshot sees; SQLite's counts what other connections committed, and
        is asked on one that never writes.
        """
        with self._gate.reader():
            if self.engine.dialect.name == "postgresql":
                with self._reader.connect() as connection:
                    return str(connection.scalar(text("SELECT pg_current_snapshot()::text")))
            with self._watching:
                self._watcher = self._watcher or self._watch()
                try:
                    return str(self._watcher.execute("PRAGMA data_version").fetchone()[0])
                except sqlite3.OperationalError:  # another program keeps all readers out: whoever reads hears of it
                    return f"unknown {time.monotonic_ns()}"

    @property
    def is_watched(self) -> bool:
        """Whether `version` keeps nobody waiting: SQLite finds it in memory, once it has been asked."""
        return self._watcher is not None

    def _watch(self) -> Any:
        """A connection of SQLite's that is nobody else's and waits for nobody."""
        pooled = self.engine.raw_connection()
        pooled.detach()
        watcher: Any = pooled.dbapi_connection
        watcher.execute("PRAGMA busy_timeout = 0")
        return watcher

    def _joined(self) -> Session | None:
        database, session = _OPEN.get()
        return session if database is self else None

    @property
    def is_open(self) -> bool:
        """Whether a transaction of this thread is under way."""
        return self._joined() is not None

    def ping(self) -> None:
        """Raises where the database does not answer."""
        with self._reader.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Closes every pooled connection."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self.engine.dispose()


def is_full(error: DBAPIError) -> bool:
    """Whether the database's disk is full."""
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", None) in _FULL
    return getattr(error.orig, "sqlstate", None) in _FULL


def nobody_writes(error: DBAPIError) -> bool:
    """Whether the failure itself proves that nobody can commit anything at the moment: another program holds SQLite's
    write lock, or its disk is full.

    Of PostgreSQL nothing proves it. Who refuses us may be a proxy or a firewall before this host alone, or a server
    whose place another has taken; who shuts down still serves those that it let in.
    """
    return isinstance(error.orig, sqlite3.Error) and (
        is_full(error) or getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
    )
