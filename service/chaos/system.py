"""The parts of a whole service in one folder, with two workers that share nothing but URLs, and times scaled down."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from service import embedded
from service.chaos.visitor import MODEL
from service.db import Database
from service.jobs.access.keys import SCOPES, create_key
from service.jobs.tables import Model
from service.migrating import migrate
from service.settings import Settings
from service.storage import open_store

OWNER = "chaos"
TRAINER = "service.chaos.trainer"

SCALED: Mapping[str, float] = {
    "heartbeat_seconds": 0.3,
    "self_fence_seconds": 2.0,
    "lease_seconds": 3.0,
    "redispatch_seconds": 1.5,
    "dispatch_seconds": 0.1,
    "grace_seconds": 1.0,
}
"""A seventh of the times of production, in the same order."""


@dataclass
class Part:
    """A program, and its process. `folder` has its log."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    ready: Callable[[], None] = lambda: None
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.process is None or self.process.poll() is not None:
            with (self.folder / f"{self.name}.log").open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    env=dict(self.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=self.pass_fds,
                )
            self.ready()

    def tree(self) -> list[psutil.Process]:
        """Its process and all that descend from it; empty where it does not run."""
        try:
            process = psutil.Process(self.process.pid if self.process else 0)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


class System:
    """A context manager: everything runs within it, and nothing after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        shared: dict[str, Any] = {
            "database_url": f"sqlite:///{folder / 'allo.db'}",
            "store_url": (folder / "store").as_uri(),
            "broker_url": embedded.broker_url(folder),
            "engine": f"{sys.executable} -m {TRAINER}",
            "log_format": "json",
            "min_free_bytes": 0,
            **SCALED,
        }
        self.settings = [Settings.model_validate({"data_dir": folder / name, **shared}) for name in ("one", "two")]
        for settings in self.settings:
            settings.open_data_dir()
        migrate(self.settings[0].database)
        self.database, self.store = Database(self.settings[0].database), open_store(self.settings[0].store)
        self.key = create_key(self.database, OWNER, SCOPES).secret
        self._register()
        self.broker = Part("broker", embedded.command(folder), os.environ, folder, self._broker_ready)
        python, fd = (sys.executable, "-m"), self._listener.fileno()
        api = [*python, "service.server", "--fd", str(fd)]
        self.api = Part("api", api, self._environment(self.settings[0]), folder, pass_fds=(fd,))
        self.workers = [
            Part(f"worker-{settings.data_dir.name}", [*python, "worker"], self._environment(settings), folder)
            for settings in self.settings
        ]

    @property
    def parts(self) -> list[Part]:
        """In the order in which they are started."""
        return [self.broker, self.api, *self.workers]

    def __enter__(self) -> System:
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        trees = [process for part in self.parts for process in part.tree()]
        for process in [*trees, *self.trainers()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for part in self.parts:
            part.kill()
        self.database.close()
        self._listener.close()

    def heal(self) -> None:
        """Let everything run that should."""
        for part in self.parts:
            part.start()

    def trainers(self) -> list[psutil.Process]:
        """The processes of this system's stages, whoever their parents are."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = process.cmdline()
                ours = any(argument.startswith(str(self.folder)) for argument in command)
                if TRAINER in command and ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _environment(self, settings: Settings) -> Mapping[str, str]:
        return os.environ | settings.to_environment()

    def _register(self) -> None:
        """A model that no trainer looks into."""
        blob = self.store.put_stream([b"no weights"])
        weights = {"path": "model.safetensors", "bytes": blob.size, "sha256": blob.sha256}
        with self.database.transaction() as session:
            session.add(Model(id=MODEL, owner=None, created_at=0, files=[weights]))

    def _broker_ready(self) -> None:
        embedded.wait_until_ready(self.folder)
