"""The web process: polls of a job with ten stages against a bare endpoint of FastAPI and SQLAlchemy that reads one row,
lists of many jobs against lists of few, and a cold start. Clients and server share the machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from allo_engine.pipeline import Data, plan
from service.db import Database
from service.jobs.keys import create_key
from service.jobs.lifecycle import JobStatus, StageStatus
from service.jobs.tables import Artifact, Job, Stage
from service.migrating import migrate
from service.settings import Settings
from tests.benchmarks.case import Case
from tests.benchmarks.load import drive

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


def ours() -> dict[str, float]:
    with _place(1) as (settings, key), _served(["-m", "service.server", "--fd"], settings) as port:
        return _polls(port, key)


def bare() -> dict[str, float]:
    with _place(1) as (settings, key), _served(["-c", BARE, settings.database], settings) as port:
        return _polls(port, key)


def many() -> dict[str, float]:
    return _lists(MANY)


def few() -> dict[str, float]:
    return _lists(FEW)


def cold() -> float:
    """Seconds from the start of `python -m service.server` to its first answer."""
    with _place(1) as (settings, _):
        began = time.perf_counter()
        with _served(["-m", "service.server", "--fd"], settings):
            return time.perf_counter() - began


def imports() -> float:
    """The same of a bare endpoint."""
    with _place(1) as (settings, _):
        began = time.perf_counter()
        with _served(["-c", BARE, settings.database], settings):
            return time.perf_counter() - began


def _polls(port: int, key: str) -> dict[str, float]:
    alone, together = (drive(port, f"{PATH}/{JOB}", clients, SECONDS, key) for clients in (1, CLIENTS))
    return {"1 client": alone["per_second"], "32 clients": together["per_second"], "p99": together["p99_ms"]}


def _lists(jobs: int) -> dict[str, float]:
    with _place(jobs) as (settings, key), _served(["-m", "service.server", "--fd"], settings) as port:
        return {str(limit): drive(port, f"{PATH}?limit={limit}", 1, SECONDS, key)["median_ms"] for limit in (20, 100)}


@contextmanager
def _place(jobs: int) -> Iterator[tuple[Settings, str]]:
    """A data folder with so many finished jobs, and a key that reads them."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), min_free_bytes=0, log_level="WARNING", requests_per_minute=0)
        migrate(settings.database)
        database = Database(settings.database)
        key = create_key(database, "owner", ("read",)).secret
        _fill(database, jobs)
        database.close()
        yield settings, key


def _fill(database: Database, jobs: int) -> None:
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


@contextmanager
def _served(command: list[str], settings: Settings) -> Iterator[int]:
    """The port of a server that answers; its listening socket is handed down."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        process = subprocess.Popen(
            [sys.executable, *command, str(descriptor)],
            env=os.environ | settings.to_environment(),
            pass_fds=[descriptor],
        )
    try:
        with socket.create_connection(("127.0.0.1", port), 60) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.recv(12).startswith(b"HTTP/1.1")
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _name(what: str) -> Any:
    return lambda: f"{what}, fastapi {version('fastapi')}, sqlalchemy {version('sqlalchemy')}"


_BARE, _INTERPRETER = _name("a bare endpoint that reads one row"), "the interpreter: one process answers"
CASES = (
    Case("polls of a job of ten stages, a second", ours, bare, _BARE, 0.75, True, _INTERPRETER, "1 client"),
    Case("the same from 32 clients", ours, bare, _BARE, 0.75, True, _INTERPRETER, "32 clients"),
    Case("the same, 99th percentile, ms", ours, bare, _BARE, 1.0, False, _INTERPRETER, "p99"),
    Case("a list of 20 of 10,000 jobs, ms", many, few, lambda: "of 100 jobs", 1.2, False, _INTERPRETER, "20"),
    Case("a list of 100 of 10,000 jobs, ms", many, few, lambda: "of 100 jobs", 1.2, False, _INTERPRETER, "100"),
    Case("from a cold start to an answer, s", cold, imports, _BARE, 1.5, False, "imports", ""),
)
