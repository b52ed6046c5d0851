"""What one stage computed and another needs again: bytes by key, in a SQLite file that the stages on a machine share.

Free of torch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Hashable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


class Shelf:
    """It may be deleted at any time. A damaged one is an empty one."""

    def __init__(self, path: Path, largest: int = 1 << 30) -> None:
        """`largest`: bytes in use beyond which the older half is forgotten."""
        self._path, self._largest = path, largest
        self._table = path.stem

    def read(self, keys: Mapping[Name, bytes]) -> dict[Name, bytes]:
        """What is there of what the keys name, by the same names."""
        if not self._path.exists():
            return {}
        find = f"SELECT * FROM {self._table} WHERE key = ?"  # noqa: S608 - a name of ours
        try:
            with closing(self._connect()) as connection:
                rows = {name: connection.execute(find, [key]).fetchone() for name, key in keys.items()}
        except sqlite3.DatabaseError:
            self._path.unlink(missing_ok=True)
            return {}
        return {name: row[1] for name, row in rows.items() if row}

    def write(self, rows: Mapping[bytes, bytes]) -> None:
        """Keep all of it or, where the process dies, nothing. What is there already stays as it is."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        table = self._table
        with closing(self._connect()) as connection, connection:
            if _bytes_in_use(connection) > self._largest:
                connection.execute(f"DELETE FROM {table} WHERE rowid <= (SELECT avg(rowid) FROM {table})")  # noqa: S608
            connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", rows.items())  # noqa: S608

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=60)
        connection.execute(f"CREATE TABLE IF NOT EXISTS {self._table} (key BLOB PRIMARY KEY, kept BLOB NOT NULL)")
        return connection


def _bytes_in_use(connection: sqlite3.Connection) -> int:
    """What stands in the file. The file itself never shrinks: what is forgotten makes room for what comes."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
