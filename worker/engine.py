"""The engine as the runner sees it: a process under a supervisor that writes one JSON object a line."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from worker.starting import Launch, Start
from worker.sweep import sweep_outlived
from worker.workspace import Workspace

DEFAULT_COMMAND = (sys.executable, "-m", "allo_engine")

_POLL_SECONDS = 0.1
_LONGEST_LINE = 2**20


class Engine:
    """One engine process. Leaving the context leaves no process behind."""

    def __init__(
        self,
        start: Start,
        command: Sequence[str],
        stage_id: str,
        name: str,
        workspace: Workspace,
        grace: float,
        lease: float,
        environment: Mapping[str, str],
    ) -> None:
        options = ("--grace", str(grace), "--lease", str(lease))
        command = (*command, name, "--config", str(workspace.stage_file))
        (orders, self._orders), (self._words, words) = os.pipe(), os.pipe()
        self._saying, self._over = threading.Lock(), False
        try:
            with workspace.log.open("ab") as log:
                descriptors = (orders, words, log.fileno(), workspace.lock)
                self._supervisor = start(Launch(stage_id, workspace.run, options, command, *descriptors, environment))
        except BaseException:
            os.close(self._orders)
            os.close(self._words)
            raise
        finally:
            os.close(orders)
            os.close(words)

    def lines(self) -> Iterator[Mapping[str, Any] | None]:
        """What the engine says, as it says it; None whenever it was silent for a moment. Ends when the engine has."""
        watched, unread, ended = [self._words, self._supervisor.pidfd], b"", False
        while True:
            readable, _, _ = select.select(watched, [], [], _POLL_SECONDS)
            if self._words in readable:
                received = os.read(self._words, 65536)
                *lines, unread = (unread[-_LONGEST_LINE:] + received).split(b"\n")
                yield from filter(None, map(_parse, lines))
                if not received:
                    watched.remove(self._words)
            elif ended:  # asked before it was listened for once more: what it wrote before its end has been read
                return
            ended = self._supervisor.pidfd in readable
            yield None

    def beat(self) -> None:
        """Tell the supervisor that a heartbeat reached the database."""
        self._say(b"beat\n")

    def stop(self) -> None:
        """Ask for a checkpoint and the end."""
        self._say(b"stop\n")

    def stack(self) -> None:
        """Have it write to its log where it stands."""
        self._say(b"stack\n")

    def kill(self) -> None:
        """End everything at once."""
        self._say(b"kill\n")

    def status(self) -> int:
        """The exit status, 128 + n for signal n. A supervisor that was killed itself counts as its command."""
        code = self._supervisor.wait()
        return code if code >= 0 else 128 - code

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        with self._saying:
            self._over = True
            os.close(self._orders)
        os.close(self._words)
        if self._supervisor.wait() < 0:
            sweep_outlived()
        self._supervisor.close()

    def _say(self, line: bytes) -> None:
        with self._saying, suppress(OSError):  # the supervisor has ended
            if not self._over:  # a heart beats on, and the pipe's number may be another file's by now
                os.write(self._orders, line)


def _parse(line: bytes) -> Mapping[str, Any] | None:
    """One message of the engine; None for whatever a library printed instead."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("type"), str) else None
