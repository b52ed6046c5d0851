"""How fast this worker is, for estimates: measured once, while it has nothing to do, and kept in its data folder.

The engine measures (allo_engine/estimate/calibration.py), in a process of its own that has the environment of a stage
and sees the first of this worker's devices: they are taken to be alike. It writes where stages write, so that the disk
is theirs. A stage that is given to the worker waits for nothing: the measurement ends as soon as the stage is seen, and
begins anew once the worker has rested again. What was measured holds until the machine, torch, the threads or the
engine change.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path

from allo_engine.estimate.rates import Calibration, processor
from allo_engine.orphans import die_with
from service.jobs.running.placement import Offer
from worker.devices import visible
from worker.starting import engine_environment

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "allo_engine.estimate.calibration", "--json")
"""Prints the rates, on its last line. What it keeps, it keeps in XDG_CACHE_HOME."""

LONGEST_SECONDS = 300.0
"""A measurement takes some ten, and the import of torch; one that takes so long will never end."""

_LOOK_SECONDS = 1.0

Rates = Mapping[str, float]


class Calibrating:
    """This worker's rates, once they are known.

    `folder` is the data folder, `after` the seconds without a stage after which they are measured (0: never). `clock`
    is monotonic.
    """

    def __init__(
        self,
        folder: Path,
        offer: Offer,
        after: float,
        command: Sequence[str] = COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept, self._scratch = folder / "calibration.json", folder.absolute() / "calibration"
        self._log = folder / "logs" / "calibration.log"
        self._of, self._devices = _measured_of(offer), [device.name for device in offer.devices[:1]]
        self._after, self._command, self._clock = after, command, clock
        self._process: subprocess.Popen[str] | None = None
        self._began = self._idle_since = self._looked = clock()
        self.rates = self._read()
        self._ended = self.rates is not None or not after

    def tend(self, busy: Callable[[], bool]) -> Rates | None:
        """Go on with it, where there is something to do; the rates, once they are known. `busy` says whether this
        worker has a stage."""
        now = self._clock()
        if not self._ended and (self._process or now - self._looked >= _LOOK_SECONDS):
            self._looked = now
            try:
                self._go_on(busy(), now)
            except OSError as error:  # a full disk, say: no reason for the worker to end
                self._ended = True
                log.warning("calibration_failed error=%r", error)
        return self.rates

    def _go_on(self, busy: bool, now: float) -> None:
        if busy:
            self._idle_since = now
            self.close()
        elif self._process is not None:
            self._look_after(self._process, now)
        elif now - self._idle_since >= self._after:
            self._start(now)

    def close(self) -> None:
        """End a measurement that runs, with all that it started and wrote."""
        if self._process is not None:
            log.info("calibration_stopped")
            self._last_word(self._process)

    def _start(self, now: float) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)  # of a worker that was killed
        self._scratch.mkdir()
        self._log.parent.mkdir(exist_ok=True)
        own = {"TMPDIR": str(self._scratch), "XDG_CACHE_HOME": str(self._scratch)}
        with self._log.open("w") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**engine_environment(), **visible(self._devices or None), **own},
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid()),
            )
        self._began = now
        log.info("calibration_started")

    def _look_after(self, process: subprocess.Popen[str], now: float) -> None:
        if process.poll() is None and now - self._began < LONGEST_SECONDS:
            return
        said = self._last_word(process)
        self.rates = _usable(said) if process.returncode == 0 else None
        self._ended = True  # where it failed, it would fail again: the worker's next start is another try
        if self.rates is None:
            log.warning("calibration_failed status=%s log=%s", process.returncode, self._log)
        else:
            self._keep(self.rates)
            log.info("calibrated %s", " ".join(f"{name}={rate:.3g}" for name, rate in self.rates.items()))

    def _last_word(self, process: subprocess.Popen[str]) -> str:
        """End the process, and all that it started, if it has not ended; the last line that it wrote."""
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        self._process = None
        shutil.rmtree(self._scratch, ignore_errors=True)
        return (said.splitlines() or [""])[-1]

    def _read(self) -> Rates | None:
        """What was kept, if it is of this very worker, and sound."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            return _usable(json.dumps(kept["rates"])) if kept["of"] == self._of else None
        return None

    def _keep(self, rates: Rates) -> None:
        aside = self._kept.with_suffix(".new")
        aside.write_text(json.dumps({"of": self._of, "rates": rates}, indent=2), encoding="utf-8")
        aside.replace(self._kept)


def _usable(text: str) -> Rates | None:
    """Rates that this version of the engine prices with, from JSON; None where it is none of them."""
    with suppress(ValueError, TypeError):
        found = Calibration.read(json.loads(text))
        return None if found is None else asdict(found)
    return None


def _measured_of(offer: Offer) -> str:
    """What rates hold for."""
    device = ", ".join(device.kind for device in offer.devices) or f"cpu {processor()}"
    threads = os.environ.get("OMP_NUM_THREADS") or offer.cores
    return f"{device} / torch {metadata.version('torch')} / {threads} threads / engine {offer.code}"
