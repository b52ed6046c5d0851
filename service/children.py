"""Questions to programs that run beside this process, so that it never loads what they need."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Sequence
from tempfile import TemporaryFile
from threading import Timer
from typing import Any

NICE = 10
"""How far a child stands back behind what serves and trains."""


class ChildFailed(Exception):
    """A child that gave no answer: its last words, and its exit status, of which -9 says that it was killed."""

    def __init__(self, words: str, status: int) -> None:
        super().__init__(words)
        self.words, self.status = words, status


def alone(**more: str) -> dict[str, str]:
    """The environment of a child that reads what is on this machine, and computes on its processor. Strangers wrote
    what it reads: of our settings, which hold passwords, it sees none."""
    from service.settings import PREFIX  # here: a child that starts one of its own need not load the settings

    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {**others, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def last_words(errors: str, otherwise: str = "it said nothing") -> str:
    """The last line of what a child wrote to its standard error: the error itself, below a traceback."""
    return (errors.strip().splitlines() or [otherwise])[-1]


def told(command: Sequence[str], seconds: float, memory: int) -> Any:
    """The last line that a child prints, which is JSON; on one thread, within so many seconds and bytes of memory.

    Its input stays open for as long as this process lives: a child that reads it ends with this. Raises ChildFailed.
    """
    environment = alone(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    pipe = subprocess.PIPE
    with (
        TemporaryFile() as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, env=environment, process_group=0) as child,
    ):
        assert child.stdout is not None
        too_long = Timer(seconds, _kill, [child])
        too_long.start()
        try:
            _hold_back(child.pid, memory)
            said, status = child.stdout.read(), child.wait()
        finally:
            too_long.cancel()
        if status == 0:
            return json.loads(said.splitlines()[-1])
        errors.seek(0)
        words = f"it took more than {seconds:.0f} seconds, or was killed" if status == -signal.SIGKILL else ""
        raise ChildFailed(words or last_words(errors.read().decode(errors="replace")), status)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and whatever it has started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)


def _hold_back(child: int, memory: int) -> None:
    try:
        resource.prlimit(child, resource.RLIMIT_DATA, (memory, memory))
        resource.prlimit(child, resource.RLIMIT_CORE, (0, 0))
        os.setpriority(os.PRIO_PROCESS, child, NICE)
    except ProcessLookupError:
        return  # it has ended already
