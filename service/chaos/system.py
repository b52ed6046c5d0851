"""The parts of a whole service in one folder, with two workers that share nothing but URLs, and times scaled down."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from service.chaos import disk, preload
from service.chaos.ground import embedded_ground, grown_ground
from service.chaos.part import Part
from service.chaos.visitor import MODEL
from service.chaos.wire import Wire
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


class System:
    """A context manager: everything runs within it, and nothing after it.

    `wires` lead from whom they are named after to a server; `disks` are those that can be filled. What there is none of
    here, such as disks where nobody may mount, is empty.
    """

    def __init__(self, folder: Path, grown: bool = False) -> None:
        self.folder = folder
        self.disks: list[disk.Disk] = []
        self.wires: list[Wire] = []
        self._ours: list[Part] = []
        with ExitStack() as undo:
            self._make(grown, undo)
            self._undo = undo.pop_all()

    def _make(self, grown: bool, undo: ExitStack) -> None:
        """All of it, of which only the ground runs yet; `undo` takes away what was made, however far that came."""
        folder = self.folder
        for name in ("shared", "one", "two"):
            made = disk.mounted(folder / name)
            if made is not None:
                undo.callback(made.close)
                self.disks.append(made)
        self.ground = (grown_ground if grown else embedded_ground)(folder / "shared")
        undo.callback(self.ground.close)
        self._listener = undo.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        undo.callback(self._kill)
        if self.ground.disk is not None:
            self.disks.append(self.ground.disk)
        self._preload(self.ground.parts)
        straight = self._settings("shared", None)
        wired = {name: self._wired(name, undo) for name in _REACHING}
        settings = {name: self._settings("one" if name == "api" else name, ports) for name, ports in wired.items()}
        for part in self.ground.parts:
            part.start()
        migrate(straight.database)
        self.database, self.store = Database(straight.database), open_store(straight.store, straight.s3)
        undo.callback(self.database.close)
        self.key = create_key(self.database, OWNER, SCOPES).secret
        self._register()
        python, fd = (sys.executable, "-m"), self._listener.fileno()
        api = [*python, "service.server", "--fd", str(fd)]
        self.api = Part("api", api, self._environment(settings["api"]), folder, pass_fds=(fd,))
        self.workers = [
            Part(f"worker-{name}", [*python, "worker"], self._environment(settings[name]), folder)
            for name in ("one", "two")
        ]
        self._ours = [self.api, *self.workers]
        self._preload(self._ours)

    @property
    def parts(self) -> list[Part]:
        """In the order in which they are started."""
        return [*self.ground.parts, *self._ours]

    def __enter__(self) -> System:
        with ExitStack() as undo:
            undo.push(self._undo)
            self.heal()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _kill(self) -> None:
        trees = [process for part in self.parts for process in part.tree()]
        for process in [*trees, *self.trainers()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for part in self.parts:
            part.kill()

    def heal(self) -> None:
        """Let everything run that should; returns once it does."""
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

    def _settings(self, name: str, ports: Mapping[str, int] | None) -> Settings:
        shared = {"engine": f"{sys.executable} -m {TRAINER}", "log_format": "json", "min_free_bytes": 0, **SCALED}
        settings = Settings.model_validate(
            {"data_dir": self.folder / name, **shared, **self.ground.settings(ports)},
        )
        settings.open_data_dir()
        return settings

    def _wired(self, name: str, undo: ExitStack) -> Mapping[str, int]:
        """The ports by which the part reaches each server."""
        ports = {}
        for server, address in self.ground.servers.items():
            wire = Wire(f"{name} to {server}", address)
            undo.callback(wire.close)
            self.wires.append(wire)
            ports[server] = wire.port
        return ports

    def _preload(self, parts: Iterable[Part]) -> None:
        for part in parts:
            home = part.home or self.folder
            library = preload.built(home) if part.mortal else None
            if library is not None:
                part.told = preload.Told(library, home / f"{part.name}.told", part.user)

    def _environment(self, settings: Settings) -> Mapping[str, str]:
        return os.environ | settings.to_environment()

    def _register(self) -> None:
        """A model that no trainer looks into."""
        blob = self.store.put_stream([b"no weights"])
        weights = {"path": "model.safetensors", "bytes": blob.size, "sha256": blob.sha256}
        with self.database.transaction() as session:
            session.add(Model(id=MODEL, owner=None, created_at=0, files=[weights]))


_REACHING = ("api", "one", "two")
"""Who reaches the servers: each over wires of its own."""
