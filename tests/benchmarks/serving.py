"""A web process to be measured, on a data folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from service.app import REST
from service.db import Database
from service.jobs.access.keys import SCOPES, create_key
from service.migrating import migrate
from service.settings import Settings

OURS = ("-m", "service.server", "--fd")


@dataclass(frozen=True)
class Place:
    """A data folder: its settings, its database, and a key of `owner`."""

    settings: Settings
    database: Database
    key: str


@dataclass(frozen=True)
class Server:
    """A web process that answers."""

    port: int
    process: psutil.Process

    def megabytes(self) -> float:
        """Of the process and of those that it has started."""
        total = self.process.memory_info().rss
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += child.memory_info().rss
        return float(total) / 1e6

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rest(self) -> None:
        """Returns once what the process prepares behind its start is done, as in one that has run for a while."""
        time.sleep(REST)
        before = 0.0
        while (taken := self.cpu_seconds()) - before > 0.02:
            before = taken
            time.sleep(1)


@contextmanager
def opened(**settings: Any) -> Iterator[Place]:
    """A new data folder, without a bound on requests."""
    with tempfile.TemporaryDirectory() as folder:
        here = {"data_dir": Path(folder), "min_free_bytes": 0, "log_level": "WARNING", "requests_per_minute": 0}
        made = Settings(**here | settings)
        made.open_data_dir()
        migrate(made.database)
        database = Database(made.database)
        try:
            yield Place(made, database, create_key(database, "owner", SCOPES).secret)
        finally:
            database.close()


@contextmanager
def served(settings: Settings, command: Sequence[str] = OURS) -> Iterator[Server]:
    """The server that Python's `command` is; its listening socket is handed down, as the last argument."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        process = subprocess.Popen(
            [sys.executable, *command, str(descriptor)],
            env=os.environ | settings.to_environment(),
            pass_fds=[descriptor],
        )
    try:
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(12).startswith(b"HTTP/1.1")
        yield Server(port, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
