"""The dashboard's pages at 10,000 jobs: how long a browser waits for one, when nobody has asked this process for it yet
and later on, against the 100 ms that nobody notices. One browser, on this machine."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from sqlalchemy import update

from service.api.guard import COOKIE
from service.app import REST
from service.jobs.access.sessions import sign_in
from service.jobs.tables import Job
from service.settings import Settings
from tests.benchmarks.case import Case, Figures
from tests.benchmarks.service import JOB, MANY, fill
from tests.benchmarks.serving import Server, opened, served

TIMES, NOTICED = 9, 100.0
FIRST = ("Jobs", "Job", "New job")
"""Pages that are asked for as a new process's first."""

PAGES = {
    "Jobs": "/ui/jobs",
    "Jobs, the middle of the list": f"/ui/jobs?after=ftjob-{MANY // 2:08d}",
    "Jobs, searched": "/ui/jobs?text=needle",
    "Job": f"/ui/jobs/{JOB}",
    "What was learned": f"/ui/jobs/{JOB}/learned",
    "Compare": f"/ui/compare?job={JOB}&job=ftjob-00000001",
    "New job": "/ui/new",
    "Data": "/ui/files",
    "Models": "/ui/models",
    "Try": f"/ui/try?job={JOB}",
    "Workers": "/ui/workers",
    "Keys": "/ui/keys",
    "Usage": "/ui/usage",
}


def first() -> Figures:
    """Milliseconds of the first request that a new process is sent, once it rests."""
    with _furnished() as (settings, cookie):
        found = {}
        for name in FIRST:
            with served(settings) as server:
                _rested(server)
                found[name] = _view(server, PAGES[name], cookie)
        return found


def later() -> Figures:
    """Milliseconds of a page that was shown before: the median."""
    with _furnished() as (settings, cookie), served(settings) as server:
        for path in PAGES.values():
            _view(server, path, cookie)
        return {name: median(_view(server, path, cookie) for _ in range(TIMES)) for name, path in PAGES.items()}


def noticed() -> Figures:
    """Milliseconds that nobody notices."""
    return dict.fromkeys(PAGES, NOTICED)


@contextmanager
def _furnished() -> Iterator[tuple[Settings, str]]:
    """A data folder with 10,000 jobs, one of them to be found, and an admin's session."""
    with opened() as place:
        fill(place.database, MANY)
        with place.database.transaction() as session:
            session.execute(update(Job).where(Job.id == JOB).values(suffix="needle"))
        made = sign_in(place.database, place.key, 3600)
        assert made is not None
        yield place.settings, f"{COOKIE}={made.token}"


def _view(server: Server, path: str, cookie: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    began = time.perf_counter()
    connection.request("GET", path, headers={"cookie": cookie})
    answer = connection.getresponse()
    size = len(answer.read())
    took = time.perf_counter() - began
    connection.close()
    assert (answer.status, size < 200_000) == (200, True), (path, answer.status, size)
    return took * 1000


def _rested(server: Server) -> None:
    """Waits until the process has done what it does at its start."""
    time.sleep(REST)
    spent = -1.0
    while spent != (now := server.cpu_seconds()):
        spent = now
        time.sleep(0.5)


def _at_once() -> str:
    return "what a person takes for at once"


LIMIT = "the interpreter: templates are filled in, and the database is asked"

CASES = (
    *(Case(f"{name}, first of a process, ms", first, noticed, _at_once, 1.0, False, LIMIT, name) for name in FIRST),
    *(Case(f"{name}, later, ms", later, noticed, _at_once, 1.0, False, LIMIT, name) for name in PAGES),
)
