"""Live events: Server-Sent Events (WHATWG HTML, section 9.2), from the database, without a gap.

One look every half second asks for the number of events of all jobs that are watched; what is new of a job is read and
rendered once for all its streams. A stream that is behind (it began with an old event, or its reader is slow) reads
from the database. A stream ends by itself behind the job's last event; a browser that connects again is then told to
stop (204).
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from anyio import CapacityLimiter, create_task_group, to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api import render
from service.db import Database
from service.jobs import story
from service.jobs.access import keys
from service.jobs.tables import ApiKey

Answer = TypeVar("Answer")

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
"""A line that says nothing, so that no proxy takes a quiet stream for a dead one; and another look at the key."""

BATCH = 500
"""Events that are read from the database at a time, and how many of a job's newest are kept rendered."""

GONE = (0, True)
"""How many events a job has that was deleted, and that it has ended: its streams end, too."""

THREADS = 4
"""Of their own, so that streams never wait for requests, nor requests for streams."""


@dataclass
class Watched:
    """A job that streams follow: the newest events as (number, frame), without a gap, and how many there are."""

    streams: int = 0
    count: int = -1
    ended: bool = False
    frames: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=BATCH))
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self) -> None:
        """Wakes everyone who waits for news now."""
        self.news.set()
        self.news = asyncio.Event()


class EventStream(StreamingResponse):
    """A stream that ends as soon as its reader is gone, not only when there is something to tell it. It holds its
    owner's `place` until then."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[bytes], place: ExitStack) -> None:
        super().__init__(content, headers={"cache-control": "no-store"})
        self._place = place

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await self._streamed(receive, send)

    async def _streamed(self, receive: Receive, send: Send) -> None:
        async with create_task_group() as tasks:

            async def until_gone() -> None:
                await self.listen_for_disconnect(receive)
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_gone)
            await self.stream_response(send)
            tasks.cancel_scope.cancel()


class Feed:
    """All streams of this process. `run` looks for news until `close`, which also ends the streams."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._jobs: dict[str, Watched] = {}
        self._limiter: CapacityLimiter | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._closing = asyncio.Event()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._closed and not await _within(LOOK_SECONDS, self._closing):
            with suppress(SQLAlchemyError):  # it comes back, or requests say what is wrong
                await self._look()

    def close(self) -> None:
        """Ends every stream, and the wait for the next look. May be called from anywhere, a signal handler too."""
        self._closed = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._closing.set()
        for job in self._jobs.values():
            job.told()

    async def _look(self) -> None:
        if not self._jobs:
            return
        asked = [*self._jobs]
        states = await self._ask(lambda: story.read_counts(self._database, asked))
        for job_id, job in [(name, self._jobs[name]) for name in asked if name in self._jobs]:
            count, ended = states.get(job_id, GONE)
            if (job.count, job.ended) != (count, ended):
                told = job.frames[-1][0] if job.frames else 0  # may be more than were counted: it is read behind that
                job.frames.extend(await self._read(job_id, max(told, count - BATCH)))
                job.count, job.ended = count, ended
                job.told()

    async def _read(self, job_id: str, after: int) -> list[tuple[int, bytes]]:
        return await self._ask(lambda: [*_frames(self._database, job_id, after)])

    async def _ask(self, question: Callable[[], Answer]) -> Answer:
        self._limiter = self._limiter or CapacityLimiter(THREADS)
        return await to_thread.run_sync(question, limiter=self._limiter)

    @contextmanager
    def _following(self, job_id: str) -> Iterator[Watched]:
        job = self._jobs.setdefault(job_id, Watched())
        job.streams += 1
        try:
            yield job
        finally:
            job.streams -= 1
            if not job.streams:
                del self._jobs[job_id]

    async def stream(
        self, key: ApiKey, job_id: str, seq: int, still: Callable[[], bool] | None = None
    ) -> AsyncIterator[bytes]:
        """Every event of the job behind number `seq`, as it happens; for as long as `still` says so, or the key is
        valid."""
        still = still or (lambda: keys.is_valid(self._database, key.id))
        with self._following(job_id) as job:
            yield b"retry: 2000\n"  # a line of the first event, as below: clients take an empty line for an event's end
            while not self._closed:
                news, ended, count = job.news, job.ended, job.count
                behind = await self._behind(job, job_id, seq)
                if behind:
                    seq = behind[-1][0]
                    yield b"".join(frame for _, frame in behind)
                if ended and seq >= count:
                    return
                up_to_date = job.count < 0 or seq >= job.count
                if up_to_date and not await _within(HEARTBEAT_SECONDS, news):
                    yield b": still here\n"
                    if not await self._ask(still):
                        return

    async def _behind(self, job: Watched, job_id: str, seq: int) -> list[tuple[int, bytes]]:
        kept = job.frames
        if kept and kept[0][0] <= seq + 1:
            return [kept[place] for place in range(seq + 1 - kept[0][0], len(kept))]
        return await self._read(job_id, seq)


async def _within(seconds: float, news: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return False
    return True


def _frames(database: Database, job_id: str, after: int) -> Iterator[tuple[int, bytes]]:
    for event in story.read_events_behind(database, job_id, after, BATCH):
        data = json.dumps(render.event(event), ensure_ascii=False)
        yield event.seq, f"id: {event.id}\ndata: {data}\n\n".encode()
