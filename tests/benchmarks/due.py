"""The service against what it owes, in plain figures: answers a second and their times, lists of many jobs and of
unfinished ones, its start, and the memory of its processes at rest."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from service import demo
from service.jobs.access.keys import SCOPES, create_key
from tests.benchmarks import service
from tests.benchmarks.case import Case, Figures, Side
from tests.benchmarks.load import drive
from tests.benchmarks.overhead import ALONE, at_rest, environment
from tests.benchmarks.recovery import housed
from tests.benchmarks.serving import served
from tests.integration.worker.house import OWNER
from tests.waiting import until

UNFINISHED = 100
MIB = 2**20

DUE: Mapping[str, float] = {
    "answers a second, 1 connection": 1000,
    "answers a second, 32 connections": 1000,
    "99th percentile with 32 connections, ms": 50,
    "a list of 20 of 10,000 jobs, ms": 10,
    "a list of 100 of 10,000 jobs, ms": 50,
    "a list of 20 of 100 unfinished jobs, ms": 10,
    "a list of 100 of 100 unfinished jobs, ms": 50,
    "one of 100 unfinished jobs, ms": 10,
    "cold start of the API, s": 1.5,
    "cold start of `allo up`, s": 3,
    "memory at rest: API, MiB": 50,
    "memory at rest: worker and scheduler, MiB": 141,
    "memory at rest: `allo up`, MiB": 45,
}
"""What each figure is to be: those of seconds and bytes at most, those of answers at least."""


def polls() -> Figures:
    found = service.ours()
    names = ("answers a second, 1 connection", "answers a second, 32 connections")
    p99 = {"99th percentile with 32 connections, ms": found["p99"]}
    return dict(zip(names, (found["1 client"], found["32 clients"]), strict=True)) | p99


def lists() -> Figures:
    return {f"a list of {limit} of 10,000 jobs, ms": found for limit, found in service.many().items()}


def unfinished() -> Figures:
    """Lists of jobs that wait, and one of these, each with what is foreseen of it."""
    with housed() as house:
        jobs = [house.submit(seed) for seed in range(UNFINISHED)]
        key = create_key(house.database, OWNER, SCOPES).secret
        asked = {f"a list of {n} of {UNFINISHED} unfinished jobs, ms": f"{service.PATH}?limit={n}" for n in (20, 100)}
        asked[f"one of {UNFINISHED} unfinished jobs, ms"] = f"{service.PATH}/{jobs[0]}"
        with served(house.settings) as server:
            return {
                name: drive(server.port, path, 1, service.SECONDS, key)["median_ms"] for name, path in asked.items()
            }


def starts() -> Figures:
    """Cold starts; and what each process holds of its own, and its share of what several hold, once all is at rest."""
    api = {"cold start of the API, s": service.started()["wall"]}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, environment(ALONE), demo.serving(Path(folder)) as client:
        took = {"cold start of `allo up`, s": time.perf_counter() - began}
        until(lambda: client.workers() and at_rest())
        return api | took | _memory()


def _memory() -> Figures:
    found = {"API": 0.0, "worker and scheduler": 0.0, "`allo up`": 0.0}
    for process in psutil.Process().children(recursive=True):
        role = _role(process.cmdline())
        if role:
            found[role] += process.memory_full_info().pss / MIB
    return {f"memory at rest: {role}, MiB": size for role, size in found.items()}


def _role(command: list[str]) -> str:
    """Empty for the broker, the process that has the engine loaded, and the one that has models answer."""
    modules = {"service.server": "API", "service.cli": "`allo up`"}
    modules |= dict.fromkeys(("worker", "worker.scheduler"), "worker and scheduler")
    return next((role for module, role in modules.items() if command[1:3] == ["-m", module]), "")


def due() -> Figures:
    return DUE


def _case(name: str, ours: Side) -> Case:
    return Case(name, ours, due, lambda: "what is due", 1.0, name.startswith("answers"), "the interpreter", name)


_SIDES: Mapping[str, Side] = {"unfinished": unfinished, "list": lists, "cold": starts, "memory": starts}

CASES = tuple(_case(name, next((side for word, side in _SIDES.items() if word in name), polls)) for name in DUE)
