"""How much of the time is training where something is killed once an hour: the real engine and a real small model, with
production's leases, checkpoints and copies of them.

A kill costs the time until the stage is again at the step where it stood: a look or a lease until it is known, a start,
and what was computed since the checkpoint that it goes on from, once more. The kills stand as long behind a checkpoint,
or its copy, as at every moment on average; so one an hour leaves 1 - cost / 3600 of the time.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import psutil
from sqlalchemy import func, select

from service.jobs.tables import KeptCheckpoint, Stage
from service.settings import Settings
from tests.benchmarks import material
from tests.benchmarks.case import Case, Figures
from tests.benchmarks.recovery import housed, joined
from tests.integration.worker.house import House, give
from tests.integration.worker.processes import Worker, kill_tree
from tests.waiting import until

KILLS, HOUR, DUE = 4, 3600.0, 0.97
PACE = Settings().keep_seconds
"""Seconds between checkpoints, and between copies of them."""

SFT = {"batch_size": 4, "n_epochs": 100, "template": material.TEMPLATE}
"""Small steps, and more of them than any measurement takes."""


@dataclass
class Training:
    """A stage that trains, and the worker that it runs on."""

    house: House
    job: str
    worker: Worker
    hosts: int = 0

    @property
    def stage(self) -> Stage:
        return self.house.stage(self.job)

    def saved(self) -> int:
        """The step behind which there is a checkpoint."""
        return self.stage.saved_step or 0

    def copied(self) -> int:
        """The step behind which there is a copy in the store."""
        with self.house.database.snapshot() as session:
            return session.scalar(select(func.max(KeptCheckpoint.step))) or 0

    def lost(self, checkpoint: Callable[[], int], share: float, kill: Callable[[], None]) -> float:
        """Seconds that a kill costs, which comes so much of a pace behind a new checkpoint."""
        before = checkpoint()
        until(lambda: checkpoint() > before)
        time.sleep(share * PACE)
        stood, began = self.stage, time.monotonic()
        kill()
        until(lambda: self._is_behind(stood))
        return time.monotonic() - began

    def kill_runner(self) -> None:
        """The process of the pool, with the engine that it had loaded."""
        worker = psutil.Process(self.worker.process.pid)
        (runner,) = (child for child in worker.children() if child.cmdline() == worker.cmdline())
        os.kill(runner.pid, signal.SIGKILL)

    def stand_by(self) -> Worker:
        """Another host, which is there before this one dies."""
        self.hosts += 1
        folder = self.house.settings.data_dir.with_name(str(self.hosts))
        return joined(self.house, self.house.settings.model_copy(update={"data_dir": folder}))

    def kill_host(self, other: Worker) -> None:
        """All that it has."""
        dying, self.worker = self.worker, other
        kill_tree(dying.process.pid)

    def _is_behind(self, stood: Stage) -> bool:
        now = self.stage
        assert now.status in ("running", "ready", "dispatched"), now.error
        return now.epoch > stood.epoch and now.resumed_step is not None and (now.step or 0) >= (stood.step or 0)


@contextmanager
def training() -> Iterator[Training]:
    with tempfile.TemporaryDirectory() as folder, housed(engine="", slots=1, keep_seconds=PACE) as house:
        problems = Path(folder) / "data.jsonl"
        lines = [json.dumps({"problem": one.problem, "solution": one.solution}) for one in material.problems(400)]
        problems.write_text("\n".join(lines) + "\n")
        give(house, material.model(), problems)
        made = Training(house, house.submit(stages={"sft": SFT}), joined(house, house.settings))
        try:
            yield made
        finally:
            kill_tree(made.worker.process.pid)


def hosts() -> Figures:
    """A host dies, another goes on from the copy in the store."""
    with training() as one:
        return _told([one.lost(one.copied, share, partial(one.kill_host, one.stand_by())) for share in _shares()])


def runners() -> Figures:
    """The process that runs the stage dies, its worker goes on from the checkpoint in the work folder."""
    with training() as one:
        return _told([one.lost(one.saved, share, one.kill_runner) for share in _shares()])


def _shares() -> list[float]:
    return [(number + 0.5) / KILLS for number in range(KILLS)]


def _told(costs: list[float]) -> Figures:
    return {"share": 1 - mean(costs) / HOUR, "cost": mean(costs), "most": max(costs)}


def whole() -> Figures:
    return {"share": 1.0}


CASES = tuple(
    Case(
        f"the share of an hour that is training, where {what} in it",
        ours,
        whole,
        lambda: "all of it",
        DUE,
        True,
        f"a checkpoint each {PACE:g} s{limit}",
        "share",
    )
    for what, ours, limit in (
        ("one host dies", hosts, f", a lease of {Settings().lease_seconds:g} s"),
        ("one runner is killed", runners, ""),
    )
)
