"""The web process against a bare endpoint of FastAPI and SQLAlchemy that reads one row: polls of a job of ten stages,
alone and beside a training job, a cold start and the memory that it takes; and lists of many jobs against lists of few.
Clients and server share the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from sqlalchemy import insert

from allo_engine.pipeline import Data, plan
from service.db import Database
from service.jobs.lifecycle import JobStatus, StageStatus
from service.jobs.tables import Artifact, Job, Stage
from tests.benchmarks import beside
from tests.benchmarks.case import Case, Figures
from tests.benchmarks.load import drive
from tests.benchmarks.serving import OURS, Place, opened, served

SECONDS, CLIENTS, FEW, MANY = 4.0, 32, 100, 10_000
PATH = "/v1/fine_tuning/jobs"
JOB = "ftjob-00000000"

BARE = """
import socket, sys, uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from service.jobs.tables import Job
engine, app = create_engine(sys.argv[1]), FastAPI()
@app.get("/v1/fine_tuning/jobs/{job_id}")
def job(job_id: str):
    with Session(engine) as session:
        row = session.scalar(select(Job).where(Job.id == job_id))
        return {"id": row.id, "status": row.status, "created_at": row.created_at, "model": row.model}
config = uvicorn.Config(app, access_log=False, log_level="warning")
uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[2]))])
"""


def ours() -> Figures:
    with _filled(1) as place:
        return _polls(place, OURS)


def bare() -> Figures:
    with _filled(1) as place:
        return _polls(place, _bare(place))


def ours_beside_training() -> Figures:
    with beside.training():
        return ours()


def bare_beside_training() -> Figures:
    with beside.training():
        return bare()


def many() -> Figures:
    return _lists(MANY)


def few() -> Figures:
    return _lists(FEW)


def started() -> Figures:
    with _filled(1) as place:
        return _started(place, OURS)


def bare_started() -> Figures:
    with _filled(1) as place:
        return _started(place, _bare(place))


def _polls(place: Place, command: tuple[str, ...]) -> Figures:
    with served(place.settings, command) as server:
        alone, together = (drive(server.port, f"{PATH}/{JOB}", n, SECONDS, place.key) for n in (1, CLIENTS))
    return {"1 client": alone["per_second"], "32 clients": together["per_second"], "p99": together["p99_ms"]}


def _lists(jobs: int) -> Figures:
    with _filled(jobs) as place, served(place.settings) as server:
        found = {str(n): drive(server.port, f"{PATH}?limit={n}", 1, SECONDS, place.key) for n in (20, 100)}
    return {limit: figures["median_ms"] for limit, figures in found.items()}


def _started(place: Place, command: tuple[str, ...]) -> Figures:
    """Seconds from the start of the process to its first answer; the processor's seconds that it took itself; and the
    megabytes that it holds then, and once it has answered some hundreds of polls."""
    began = time.perf_counter()
    with served(place.settings, command) as server:
        found = {"wall": time.perf_counter() - began, "cpu": server.cpu_seconds(), "MB": server.megabytes()}
        drive(server.port, f"{PATH}/{JOB}", CLIENTS, 0.5, place.key)
        return found | {"MB later": server.megabytes()}


def _bare(place: Place) -> tuple[str, ...]:
    return "-c", BARE, place.settings.database


@contextmanager
def _filled(jobs: int) -> Iterator[Place]:
    """A data folder with so many finished jobs."""
    with opened() as place:
        fill(place.database, jobs)
        yield place


def fill(database: Database, jobs: int) -> None:
    stages = plan("allo", Data("problems", validation="problems"), {"sft": {}}, {})
    method = {"type": "allo", "hyperparameters": {}, "stages": {one.name: one.config.model_dump() for one in stages}}
    rows: dict[Any, list[Mapping[str, Any]]] = {Job: [], Stage: [], Artifact: []}
    for number in range(jobs):
        job = f"ftjob-{number:08d}"
        rows[Job].append(_job(job, method))
        for position, planned in enumerate(stages):
            stage = f"stage-{number:08d}-{position}"
            rows[Stage].append(_stage(stage, job, position, planned))
            rows[Artifact].append(_artifact(stage))
    with database.transaction() as session:
        for table, values in rows.items():
            session.execute(insert(table), values)


def _job(job: str, method: Mapping[str, Any]) -> dict[str, Any]:
    values = {"id": job, "owner": "owner", "created_at": 1, "finished_at": 2, "status": JobStatus.SUCCEEDED}
    values |= {"model": "tiny", "training_file": "file", "sources": {}, "method": method, "seed": 0}
    return values | {"result_files": [], "cancel_requested": False, "event_count": 0}


def _stage(stage: str, job: str, position: int, planned: Any) -> dict[str, Any]:
    values = {"id": stage, "job_id": job, "position": position, "name": planned.name, "status": StageStatus.SUCCEEDED}
    values |= {"config": planned.config.model_dump(), "inputs": dict(planned.inputs), "step": 9, "total": 9}
    return values | {"metrics": {"loss": 1.5, "steps": 9}, "started_at": 1, "finished_at": 2, "attempt": 1}


def _artifact(stage: str) -> dict[str, Any]:
    values = {"id": f"artifact-{stage}", "stage_id": stage, "output": "checkpoint", "path": "model.safetensors"}
    return values | {"bytes": 1, "sha256": "ab" * 32, "created_at": 1}


def _name(what: str) -> Any:
    return lambda: f"{what}, fastapi {version('fastapi')}, sqlalchemy {version('sqlalchemy')}"


def _of_polls(measure: str, goal: float, figure: str) -> list[Case]:
    """The measure alone and beside a training job."""
    rival, limit = _name("a bare endpoint that reads one row"), "the interpreter: one process answers"
    sides = ((measure, ours, bare), (f"{measure}, beside training", ours_beside_training, bare_beside_training))
    return [Case(named, one, other, rival, goal, figure != "p99", limit, figure) for named, one, other in sides]


def _of_start(measure: str, goal: float, figure: str) -> Case:
    rival = _name("a bare endpoint, uvicorn and the same tables")
    return Case(measure, started, bare_started, rival, goal, False, "imports of FastAPI and SQLAlchemy", figure)


CASES = (
    *_of_polls("polls of a job of ten stages, a second", 0.75, "1 client"),
    *_of_polls("the same from 32 clients", 0.75, "32 clients"),
    *_of_polls("the same, 99th percentile, ms", 1.0, "p99"),
    *(
        Case(f"a list of {n} of 10,000 jobs, ms", many, few, lambda: "of 100 jobs", 1.2, False, "the interpreter", n)
        for n in ("20", "100")
    ),
    _of_start("from a cold start to an answer, s", 1.5, "wall"),
    _of_start("the same, processor's s", 1.5, "cpu"),
    _of_start("memory once it answers, MB", 1.3, "MB"),
    _of_start("memory after some hundreds of polls, MB", 1.3, "MB later"),
)
