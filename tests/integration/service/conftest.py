"""Real databases of both kinds, made once, and empty for every test."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI

from service.broker import BrokerDown
from service.db import Base, Database
from service.jobs.access.keys import create_key
from service.settings import Settings
from service.storage import open_store
from tests.apps import app_over, on_a_port
from tests.integration.service.domain import Domain, furnish
from tests.parts import GROWN, Parts
from tests.waiting import PATIENCE


@pytest.fixture(params=["postgresql"] if GROWN else ["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, named: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A database of each kind with our tables, for this test alone."""
    if "database_url" in named:
        yield named["database_url"]
        return
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite"), tmp_path / "test.db")
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    base: str = request.getfixturevalue("postgres")
    url = base.replace("/postgres?", "/migrated?")
    with psycopg.connect(url, autocommit=True) as connection:
        tables = [table for table in reversed(Base.metadata.sorted_tables) if table.name != "leases"]
        connection.execute("; ".join(str(table.delete()) for table in tables))  # TRUNCATE makes files anew
        connection.execute("UPDATE leases SET holder = '', beat = 0")  # their rows a migration made
    yield url


@pytest.fixture
def named(parts: Parts) -> Iterator[dict[str, str]]:
    """The settings of parts that are this test's own."""
    with parts() as settings:
        yield settings


@pytest.fixture
def clock() -> Callable[[], float]:
    """What the database takes for the time."""
    return time.time


@pytest.fixture
def database(database_url: str, clock: Callable[[], float]) -> Iterator[Database]:
    database = Database(database_url, clock)
    yield database
    database.close()


@pytest.fixture
def domain(database: Database, named: dict[str, str], tmp_path: Path) -> Domain:
    settings = Settings(data_dir=tmp_path, **named)
    return furnish(database, open_store(settings.store, settings.s3))


class SilentBroker:
    """A broker that nobody listens to. Fulfils `Broker`."""

    def __init__(self) -> None:
        self.down = False

    def ring(self, worker: str, stage_id: str, epoch: int) -> None:
        self.ping()

    def forget(self, worker: str) -> None:
        self.ping()

    def ping(self) -> None:
        if self.down:
            raise BrokerDown("it is down")


@pytest.fixture
def broker() -> SilentBroker:
    return SilentBroker()


@pytest.fixture
def app(tmp_path: Path, sqlite: Path, broker: SilentBroker, named: dict[str, str]) -> Iterator[FastAPI]:
    """The app with small limits, over a database with a model and files in it."""
    limits: dict[str, Any] = {
        "max_file_bytes": 20_000,
        "max_request_bytes": 10_000,
        "max_line_bytes": 2_000,
        "max_active_jobs": 5,
    }
    with app_over(sqlite, tmp_path, broker, webhook_private=True, **named | limits) as app:
        yield app


@pytest.fixture
def served(app: FastAPI) -> Domain:
    """What lies behind the app."""
    return furnish(app.state.context.database, app.state.context.store)


@pytest.fixture
def secret(served: Domain) -> str:
    """A key of the owner, with every scope."""
    return create_key(served.database, "owner", ("admin",)).secret


@pytest.fixture
def base_url(app: FastAPI) -> Iterator[str]:
    """The app behind a real server on this machine."""
    with on_a_port(app) as port:
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def http(base_url: str, secret: str) -> Iterator[httpx.Client]:
    """The owner's, at the jobs."""
    headers = {"authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=f"{base_url}/fine_tuning/jobs/", headers=headers, timeout=PATIENCE) as client:
        yield client
