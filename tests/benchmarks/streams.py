"""500 live streams of one job at once, all of which must have every event in its order: what a stream costs, against
the least that a server can do, which holds the frames in memory and asks no database; and what it costs those who poll.
"""

from __future__ import annotations

import re
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from threading import Event, Thread

from sqlalchemy import update

from service.db import Database
from service.jobs import repository
from service.jobs.lifecycle import JobStatus
from service.jobs.progression import add_event
from service.jobs.tables import Job
from tests.benchmarks.case import Case, Figures
from tests.benchmarks.load import drive
from tests.benchmarks.service import JOB, PATH, fill
from tests.benchmarks.serving import OURS, Place, Server, opened, served

STREAMS, EVENTS, SECONDS, EVERY = 500, 20, 4.0, 0.1
NUMBER = re.compile(rb'"seq": (\d+)')

BARE = """
import asyncio, json, socket, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
queues, told = [], 0
async def events(request):
    queue = asyncio.Queue()
    queues.append(queue)
    async def frames():
        while True:
            yield await queue.get()
    return StreamingResponse(frames(), media_type="text/event-stream")
async def tell(request):
    global told
    told += 1
    body = {"id": f"event-{told}", "object": "fine_tuning.job.event", "level": "info", "message": "", "seq": told}
    for queue in queues:
        queue.put_nowait(f"id: event-{told}\\ndata: {json.dumps(body)}\\n\\n".encode())
    return Response()
app = Starlette(routes=[Route("/tell", tell), Route("/{path:path}", events)])
config = uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=1)
uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[1]))])
"""


def ours() -> Figures:
    with _running() as place, served(place.settings, OURS) as server:
        return _costs(server, place.key, lambda: _tell(place.database))


def bare() -> Figures:
    with _running() as place, served(place.settings, ("-c", BARE)) as server:
        return _costs(server, place.key, lambda: _get(server.port, "/tell"))


def polls() -> Figures:
    """Polls of the job beside its streams, while it advances ten times a second."""
    return _polled(STREAMS)


def polls_alone() -> Figures:
    return _polled(0)


def _costs(server: Server, key: str, tell: Callable[[], None]) -> Figures:
    """A stream's memory, kB; the server's time of a processor for an event to one stream, µs; and how long after it was
    told the last stream has an event, ms: the median, and the most."""
    _get(server.port, "/healthz")
    before = server.megabytes()
    with _Streams(server.port, key, STREAMS) as streams:
        tell()
        streams.read_until(1)
        held, began, waits = server.megabytes() - before, server.cpu_seconds(), []
        for number in range(2, EVENTS + 2):
            told = time.perf_counter()
            tell()
            streams.read_until(number)
            waits.append((time.perf_counter() - told) * 1000)
        spent = server.cpu_seconds() - began
        streams.check(EVENTS + 1)
    figures = {"kB": held / STREAMS * 1000, "us": spent / EVENTS / STREAMS * 1e6}
    return figures | {"ms": sorted(waits)[EVENTS // 2], "most ms": max(waits)}


def _polled(count: int) -> Figures:
    with ExitStack() as stack:
        other = stack.enter_context(ProcessPoolExecutor(1))
        other.submit(int).result()  # it forks now, while this process has neither threads nor connections
        place = stack.enter_context(_running())
        server = stack.enter_context(served(place.settings, OURS))
        streams = stack.enter_context(_Streams(server.port, place.key, count))
        stop, told = Event(), [0]
        reading = Thread(target=lambda: _advance(place.database, streams, stop, told))
        reading.start()
        try:
            found = other.submit(drive, server.port, f"{PATH}/{JOB}", 1, SECONDS, place.key).result()
        finally:
            stop.set()
            reading.join()
        streams.read_until(told[0])
        streams.check(told[0])
        return {"per second": found["per_second"], "p99": found["p99_ms"]}


def _advance(database: Database, streams: _Streams, stop: Event, told: list[int]) -> None:
    while not stop.wait(EVERY):
        _tell(database)
        told[0] += 1
        streams.read(0)


@dataclass
class _Reader:
    """One stream's connection, and what came over it."""

    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    count: int = 0


class _Streams:
    """So many streams of the job, read in one thread."""

    def __init__(self, port: int, key: str, count: int) -> None:
        self._port, self._key, self._count = port, key, count
        self._selector = selectors.DefaultSelector()
        self._readers: list[_Reader] = []

    def __enter__(self) -> _Streams:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        head = f"GET {PATH}/{JOB}/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
        for _ in range(self._count):
            connection = socket.create_connection(("127.0.0.1", self._port), 60)
            connection.sendall(f"{head}Authorization: Bearer {self._key}\r\n\r\n".encode())
            self._readers.append(_Reader(connection))
            self._selector.register(connection, selectors.EVENT_READ, self._readers[-1])
        while any(b"\r\n\r\n" not in reader.received for reader in self._readers):
            self.read(1)
        assert all(reader.received.startswith(b"HTTP/1.1 200") for reader in self._readers)
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.connection.close()
        self._selector.close()

    def read(self, seconds: float) -> None:
        """What has come, or comes within so many seconds."""
        for ready, _ in self._selector.select(seconds) if self._readers else ():
            reader = ready.data
            data = reader.connection.recv(2**16)
            assert data, "a stream ended"
            reader.received += data
            reader.count += reader.received[-len(data) - 4 :].count(b'"seq"')  # one may come in two parts

    def read_until(self, number: int) -> None:
        """Until every stream has so many events."""
        while any(reader.count < number for reader in self._readers):
            self.read(1)

    def check(self, number: int) -> None:
        """Every stream has had every event, in order."""
        for reader in self._readers:
            assert [int(found) for found in NUMBER.findall(reader.received)] == list(range(1, number + 1))


@contextmanager
def _running() -> Iterator[Place]:
    """A service with one job, which runs."""
    with opened(max_streams=STREAMS) as place:
        fill(place.database, 1)
        with place.database.transaction() as session:
            session.execute(update(Job).values(status=JobStatus.RUNNING, finished_at=None))
        yield place


def _tell(database: Database) -> None:
    with database.transaction() as session:
        job = repository.lock_job(session, JOB)
        assert job is not None
        add_event(session, job, database.now(), "info", "", {})


def _get(port: int, path: str) -> None:
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"


def _bare() -> str:
    return f"a broadcast from memory, starlette {version('starlette')}"


def _alone() -> str:
    return "the same without a stream"


ONE = "the interpreter: one process sends to all"

CASES = (
    Case("memory of each of 500 live streams, kB", ours, bare, _bare, 1.5, False, "a request's objects", "kB"),
    Case("processor's time for an event to a stream, µs", ours, bare, _bare, 1.5, False, ONE, "us"),
    Case("until the last of 500 has an event, ms", ours, bare, _bare, 10, False, "a look each half second", "ms"),
    Case("polls beside 500 streams, a second", polls, polls_alone, _alone, 0.75, True, ONE, "per second"),
    Case("the same, 99th percentile, ms", polls, polls_alone, _alone, 2, False, ONE, "p99"),
)
