"""One program of the system, as whoever breaks it has it in hand."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from service.chaos.preload import Told

_READY_SECONDS = 60.0


@dataclass
class Part:
    """A program, and its process. `folder` has its log; `ready` raises until it serves; `user` is whose process it is
    where that is not our own, and `home` a folder that such a one may enter; `told` is what it believes of its clock
    and its disk. One that is not `mortal` would forget at its end what it must not."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    ready: Callable[[], None] = lambda: None
    pass_fds: tuple[int, ...] = ()
    user: str | None = None
    home: Path | None = None
    told: Told | None = None
    mortal: bool = True
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Have it running and serving. What ends meanwhile, as PostgreSQL does that cannot recover, starts again."""
        end = time.monotonic() + _READY_SECONDS
        while True:
            self._start()
            try:
                return self.ready()
            except Exception:
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def _start(self) -> None:
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
