"""Processes beside the worker's own: forked from it, so that what is loaded is in memory once, and kept running."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from billiard import Process

from allo_engine.orphans import die_with
from service.footprint import settle
from worker.procfs import show_command


class Beside:
    """A process that does what `python -m MODULE ARGUMENTS` would, `main(arguments)`, and ends with this one. It keeps
    `descriptors` of those that are open here. What it opens itself, such as a database, this process must not have
    open: it forks."""

    def __init__(self, module: ModuleType, arguments: Sequence[str], *descriptors: int) -> None:
        self._module, self._arguments, self._kept = module, arguments, {0, 1, 2, *descriptors}
        self._process: Process | None = None

    def tend(self) -> None:
        """Start it, where it does not run."""
        if self._process is None or not self._process.is_alive():
            self._let_go()
            settle()
            self._process = Process(target=self._run, args=(os.getpid(),), daemon=True)
            every = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # none is to meet our handlers
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, every)

    def end(self) -> None:
        """Have it end, and wait for that."""
        if self._process is not None:
            self._process.terminate()
            self._let_go()

    def _let_go(self) -> None:
        if self._process is not None:
            self._process.join()

    def _run(self, parent: int) -> None:
        die_with(parent)
        _forget_signals()
        _let_lead_nowhere(self._kept)
        show_command([sys.executable, "-m", self._module.__name__, *self._arguments])
        self._module.main(self._arguments)


def _forget_signals() -> None:
    """Those that a program starts with, in the stead of its parent's handlers; and none is held back."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _let_lead_nowhere(kept: set[int]) -> None:
    """Every descriptor but these: what the parent hears at its other end closes with the parent alone. Their numbers
    stay taken: objects of the parent's would close them, whoever had them by then."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - kept:
        if number != nowhere:
            os.dup2(nowhere, number, inheritable=False)
