"""One program of the system, as whoever breaks it has it in hand."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from service.chaos.preload import Told


@dataclass
class Part:
    """A program, and its process. `folder` has its log; `ready` returns once it serves; `user` is whose process it is
    where that is not our own; `told` is what it believes of its clock and its disk. One that is not `mortal` would
    forget at its end what it must not."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    ready: Callable[[], None] = lambda: None
    pass_fds: tuple[int, ...] = ()
    user: str | None = None
    told: Told | None = None
    mortal: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.process is None or self.process.poll() is not None:
            with (self.folder / f"{self.name}.log").open("ab") as log:
                self.process = subprocess.Popen(
                    self.command,
                    env={**self.environment, **(self.told.environment if self.told else {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=self.pass_fds,
                    user=self.user,
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
        """End it as a power cut does; a database server with its children, which would not let the next one start."""
        if self.process is not None:
            for process in self.tree() if self.user else ():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
