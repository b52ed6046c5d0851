"""The tables that migrations make are the tables that the code means, on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import service.jobs.tables  # noqa: F401 - fills the metadata
from service.db import Base, Database
from service.migrating import NoDatabase, migrate


def test_models_and_migrations_agree(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_file_that_is_no_database_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "allo.db").write_text("no database")
    with pytest.raises(NoDatabase, match=r"allo\.db: file is not a database"):
        migrate(f"sqlite:///{tmp_path / 'allo.db'}")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_start_together_may_all_migrate(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'folder' / 'new.db'}"
    if kind == "postgresql":
        base = request.getfixturevalue("postgres")
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute("CREATE DATABASE raced")
        url = base.replace("/postgres?", "/raced?")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [url] * 4))
    database = Database(url)
    database.ping()
    database.close()
