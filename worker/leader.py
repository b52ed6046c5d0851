"""One scheduler acts at a time. A lock that ends with its holder says which.

Safety does not rest on it (see `worker.scheduling`): it spares the others their work, and the broker double rings.
"""

from __future__ import annotations

import fcntl
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

_LOCK_NUMBER = 4118


class Leadership(Protocol):
    """Who acts."""

    def held(self) -> bool:
        """Whether this process leads; tries to, where it does not yet."""

    def close(self) -> None:
        """Let another lead."""


class FileLeadership:
    """Among the processes of one machine: a lock on a file beside the SQLite database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def held(self) -> bool:
        if self._file is not None:
            return True
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class PostgresLeadership:
    """Among all who share a PostgreSQL database: an advisory lock, held by a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None

    def held(self) -> bool:
        if self._connection is not None and self._alive(self._connection):
            return True
        with ExitStack() as opened:  # closed where it is cut while it asks, and where another leads
            connection = opened.enter_context(self._engine.connect())
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:number)"), {"number": _LOCK_NUMBER}):
                return False
            opened.pop_all()
        self._connection = connection
        return True

    def close(self) -> None:
        if self._connection is not None:
            self._drop(self._connection)

    def _alive(self, connection: Connection) -> bool:
        """Whether the lock is still ours: it went with its connection, if that went."""
        try:
            connection.execute(text("SELECT 1"))
        except SQLAlchemyError:
            self._drop(connection)
            return False
        return True

    def _drop(self, connection: Connection) -> None:
        """Really close it: a connection that goes back to the pool keeps its lock."""
        connection.invalidate()
        connection.close()
        self._connection = None


def leadership(engine: Engine) -> Leadership:
    """The lock that fits the database."""
    if engine.dialect.name == "postgresql":
        return PostgresLeadership(engine)
    return FileLeadership(Path(str(engine.url.database)).with_name("scheduler.lock"))
