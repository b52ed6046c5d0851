"""The engine as the runner sees it: a process under a supervisor that writes one JSON object a line."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from worker import supervisor
from worker.sweep import STAGE_MARK, sweep_outlived
from worker.workspace import Workspace

DEFAULT_COMMAND = (sys.executable, "-m", "allo_engine")

_POLL_SECONDS = 0.1
_LONGEST_LINE = 2**20


class Engine:
    """One engine process. Leaving the context leaves no process behind."""

    def __init__(
        self, command: Sequence[str], stage_id: str, name: str, workspace: Workspace, grace: float, lease: float
    ) -> None:
        with workspace.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, supervisor.__file__, "--grace", str(grace), "--lease", str(lease), "--"),
                    *(*command, name, "--config", str(workspace.stage_file)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd=workspace.run,
                env=_environment(stage_id),
                start_new_session=True,
                pass_fds=[workspace.lock],
            )

    def lines(self) -> Iterator[Mapping[str, Any] | None]:
        """What the engine says, as it says it; None whenever it was silent for a moment. Ends when the engine has."""
        assert self._process.stdout
        stdout, unread = self._process.stdout.fileno(), b""
        while True:
            ended = self._process.poll() is not None  # asked first: what it wrote before is in the pipe by now
            if select.select([stdout], [], [], 0 if ended else _POLL_SECONDS)[0]:
                received = os.read(stdout, 65536)
                *lines, unread = (unread[-_LONGEST_LINE:] + received).split(b"\n")
                yield from filter(None, map(_parse, lines))
                if not received:
                    time.sleep(_POLL_SECONDS)
            else:
                received = b""
            if ended and not received:
                return
            yield None

    def beat(self) -> None:
        """Tell the supervisor that a heartbeat reached the database."""
        self._say(b"beat\n")

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        self._say(b"stop\n")

    def kill(self) -> None:
        """End everything at once."""
        self._say(b"kill\n")

    def status(self) -> int:
        """The exit status, 128 + n for signal n. A supervisor that was killed itself counts as its command."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        if self._process.wait() < 0:
            sweep_outlived()

    def _say(self, line: bytes) -> None:
        with suppress(OSError, ValueError):  # the supervisor has ended
            if self._process.stdin:
                self._process.stdin.write(line)


def _environment(stage_id: str) -> dict[str, str]:
    """Ours without the service's settings, which hold secrets that the engine has no use for."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ALLO_")}
    return kept | {STAGE_MARK: stage_id}


def _parse(line: bytes) -> Mapping[str, Any] | None:
    """One message of the engine; None for whatever a library printed instead."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None
