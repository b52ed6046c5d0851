"""What a request costs while a part of the service is locked, frozen, gone or full, and many want to write: the longest
that each kind took, over the time of the fault.

A request may be refused meanwhile, and is told so; what counts is that nobody is kept waiting, least of all whoever
asks for the service's health.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import psycopg
from sqlalchemy import make_url

from service.app import PATIENCE
from service.chaos.relay import Relay
from service.embedded import binary
from service.jobs.access.keys import SCOPES, create_key
from tests.benchmarks.case import Case, Figures
from tests.benchmarks.recovery import housed
from tests.benchmarks.serving import served
from tests.disk import small_disk
from tests.integration.worker.house import OWNER, House
from tests.servers import postgres_server

SECONDS, WRITERS = 30.0, 45
"""How long a fault lasts, and how many submit all the while."""

JOBS, MANY = "/v1/fine_tuning/jobs", 10**6
READS = {"health": "/healthz", "a job": JOBS + "/{job}", "a list": f"{JOBS}?limit=20"}
SUBMISSION = "a submission"

Fault = AbstractContextManager[None]
"""It is there from its `with` on."""


@contextmanager
def all_well() -> Iterator[tuple[House, Fault]]:
    """What so many ask costs by itself."""
    with housed(max_active_jobs=MANY) as house:
        yield house, nullcontext()


@contextmanager
def sqlite_locked() -> Iterator[tuple[House, Fault]]:
    """Another program writes to SQLite, and does not end."""
    with housed(max_active_jobs=MANY) as house:
        yield house, _locked(make_url(house.settings.database).database or "")


@contextmanager
def broker_frozen() -> Iterator[tuple[House, Fault]]:
    with housed(max_active_jobs=MANY) as house:
        yield house, _frozen([child for child in psutil.Process().children() if child.cmdline()[0] == str(binary())])


@contextmanager
def disk_full() -> Iterator[tuple[House, Fault]]:
    """The disk that SQLite's file lies on."""
    with (
        tempfile.TemporaryDirectory() as folder,
        small_disk(Path(folder) / "disk", megabytes=256) as disk,
        housed(max_active_jobs=MANY, database_url=f"sqlite:///{disk / 'allo.db'}") as house,
    ):
        yield house, _filled(disk / "filling")


@contextmanager
def postgres_frozen() -> Iterator[tuple[House, Fault]]:
    with postgres_server() as url, psycopg.connect(url) as connection:
        server = psutil.Process(int((Path(connection.info.host) / "postmaster.pid").read_text().split()[0]))
        with housed(max_active_jobs=MANY, database_url=_migrated(url)) as house:
            yield house, _frozen([server])


@contextmanager
def postgres_gone() -> Iterator[tuple[House, Fault]]:
    """Nothing listens any more where it was, and what was connected is cut off."""
    with postgres_server() as url, psycopg.connect(url) as connection:
        relay = Relay("127.0.0.1", Path(connection.info.host) / f".s.PGSQL.{connection.info.port}")
        at = {"host": "127.0.0.1", "port": relay.port, "query": {}}
        with housed(max_active_jobs=MANY, database_url=_migrated(url, **at)) as house:
            yield house, _closed(relay)


def _migrated(url: str, **at: object) -> str:
    return make_url(url).set(database="migrated", **at).render_as_string(hide_password=False)  # type: ignore[arg-type]


@contextmanager
def _locked(path: str) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def _frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """With all that they have started by now."""
    found = [*processes, *(child for process in processes for child in process.children(recursive=True))]
    for process in found:
        process.suspend()
    try:
        yield
    finally:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def _closed(relay: Relay) -> Iterator[None]:
    relay.close()
    yield


@contextmanager
def _filled(path: Path) -> Iterator[None]:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(2**12)):
            pass
    yield
    path.unlink()


def longest(broken: Callable[[], AbstractContextManager[tuple[House, Fault]]]) -> Figures:
    """The longest request of each kind, in seconds."""
    with broken() as (house, fault), served(house.settings) as server:
        key, job = create_key(house.database, OWNER, SCOPES).secret, house.submit()
        limits, headers = httpx.Limits(max_connections=None), {"authorization": f"Bearer {key}"}
        at = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=at, headers=headers, timeout=600, limits=limits) as client:
            kinds: dict[str, Callable[[], httpx.Response]]
            kinds = {kind: partial(client.get, path.format(job=job)) for kind, path in READS.items()}
            kinds[SUBMISSION] = partial(_submit, client)
            for ask in kinds.values():
                assert ask().is_success
            return _longest(kinds, fault)


def _submit(client: httpx.Client) -> httpx.Response:
    return client.post(JOBS, json={"model": "tiny", "training_file": "file-train", "method": {"type": "supervised"}})


def _longest(kinds: Mapping[str, Callable[[], httpx.Response]], fault: Fault) -> Figures:
    over = threading.Event()
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    crowd: list[float] = []

    def ask_on(ask: Callable[[], httpx.Response], noted: list[float], pause: float) -> None:
        while not over.wait(pause):
            began = time.monotonic()
            ask()
            noted.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask_on, args=(ask, took[kind], 0.2)) for kind, ask in kinds.items()]
    threads += [threading.Thread(target=ask_on, args=(kinds[SUBMISSION], crowd, 1.0)) for _ in range(WRITERS)]
    with fault:
        for thread in threads:
            thread.start()
        over.wait(SECONDS)
        over.set()
        for thread in threads:
            thread.join()
    return {kind: max(noted) for kind, noted in took.items()}


AT_ONCE, LOCK, ANSWER = 0.5, PATIENCE.lock + 1, PATIENCE.connect + PATIENCE.statement + 2
"""Seconds that a request may take: at once beside so many others; behind a lock that does not come free; and behind a
server that says nothing."""


def _cases(
    fault: str, broken: Callable[[], AbstractContextManager[tuple[House, Fault]]], reads: float, writes: float
) -> list[Case]:
    """Of each kind of request; `reads` and `writes` are what is due, while health is told at once."""
    due = dict.fromkeys(READS, reads) | {"health": AT_ONCE, SUBMISSION: writes}
    ours, rival, limit = partial(longest, broken), partial(dict, due), "how long the service waits for a part"
    return [
        Case(f"{kind} while {fault}, the longest, s", ours, rival, lambda: "what is due", 1.0, False, limit, kind)
        for kind in due
    ]


CASES = (
    *_cases("all is well", all_well, AT_ONCE, AT_ONCE),
    *_cases("SQLite is locked", sqlite_locked, AT_ONCE, LOCK),
    *_cases("the broker is frozen", broker_frozen, AT_ONCE, AT_ONCE),
    *_cases("the database's disk is full", disk_full, AT_ONCE, AT_ONCE),
    *_cases("PostgreSQL is frozen", postgres_frozen, ANSWER, ANSWER),
    *_cases("PostgreSQL is gone", postgres_gone, AT_ONCE, AT_ONCE),
)
