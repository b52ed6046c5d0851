"""The web app for tests: over a database that is there already, and behind a real server."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from service.app import create_app
from service.broker import Broker
from service.server import Bounds, config
from service.settings import Settings
from tests.waiting import PATIENCE, until

NOBODY_DIES: dict[str, Any] = {"self_fence_seconds": PATIENCE, "lease_seconds": 10 * PATIENCE}
"""Settings by which a worker that beat once lives for as long as the tests take."""


@contextmanager
def app_over(database: Path, root: Path, broker: Broker, **settings: Any) -> Iterator[FastAPI]:
    """The app with a data folder in `root`, whose database is a copy of that file."""
    data_dir = root / "data"
    data_dir.mkdir()
    shutil.copyfile(database, data_dir / "allo.db")
    app = create_app(Settings(data_dir=data_dir, min_free_bytes=0, **NOBODY_DIES | settings), broker)
    try:
        yield app
    finally:
        app.state.context.close()


@contextmanager
def on_a_port(app: ASGIApp, bounds: Bounds | None = None, lifespan: Literal["on", "off"] = "on") -> Iterator[int]:
    """The app behind a real server on this machine; its port."""
    server = uvicorn.Server(config(app, bounds or Bounds(), port=0, lifespan=lifespan))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
