"""Bodies too large to hold: a thread works on what has arrived while the rest is on its way.

The event loop only hands pieces on, few at a time, so that a client that is faster than the disk waits, and one body
takes a few megabytes whatever its size.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from queue import SimpleQueue
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.exceptions import HTTPException

from service.api.forms import Form
from service.jobs.errors import TooMany

_AHEAD = 2
"""Pieces that wait for the thread."""

Answer = TypeVar("Answer")


class Intake:
    """Takes bodies in, so many at once. They have threads of their own: however slowly bodies come, other requests
    find theirs; and a body that does not come at all the server drops."""

    def __init__(self, threads: int, threads_of_one: int, piece: int = 2**20) -> None:
        """`piece`: bytes that are handed to a thread at a time, as they came; at least, but for the last."""
        self._threads, self._piece_bytes = CapacityLimiter(threads), piece
        self._threads_of_one = threads_of_one
        self._taken: Counter[str] = Counter()

    async def form(
        self,
        request: Request,
        owner: str,
        content: str,
        names: Sequence[str],
        work: Callable[[Form], Answer],
    ) -> Answer:
        """What `work` makes of the request's form, in a thread, as it comes. Raises TooMany where the owner's other
        bodies have all that one owner may have, and whatever `work` raises."""
        content_type = request.headers["content-type"]
        async with self._arriving(request) as body:
            return await self.run(owner, lambda: work(Form(content_type, body, content, names)))

    async def run(self, owner: str, work: Callable[[], Answer]) -> Answer:
        """The same for work on what has arrived before."""
        with self._counted(owner):
            return await to_thread.run_sync(work, limiter=self._threads)

    @contextmanager
    def _counted(self, owner: str) -> Iterator[None]:
        if self._taken[owner] >= self._threads_of_one:
            raise TooMany(f"You have {self._threads_of_one} uploads under way: wait for one to end.")
        self._taken[owner] += 1
        try:
            yield
        finally:
            self._taken[owner] -= 1

    @asynccontextmanager
    async def _arriving(self, request: Request) -> AsyncIterator[Iterator[bytes]]:
        """The body, for a thread to iterate over."""
        body = _Body()
        pump = asyncio.create_task(self._pump(request, body))
        try:
            yield iter(body)
        finally:
            pump.cancel()
            with suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, request: Request, body: _Body) -> None:
        broken: Exception | None = RuntimeError("The request was given up before its body had arrived.")
        try:
            more = True
            while more:
                piece, more = await self._piece(request)
                await body.put(piece)
            broken = None
        except Exception as error:  # whatever it is, the thread must not take the body for whole
            broken = error
        finally:
            body.end(broken)

    async def _piece(self, request: Request) -> tuple[list[bytes], bool]:
        """The next piece, and whether there are more."""
        found: list[bytes] = []
        size, more = 0, True
        while more and size < self._piece_bytes:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise HTTPException(400, "The client left before the body had arrived.")
            body, more = message.get("body", b""), message.get("more_body", False)
            found.append(body)
            size += len(body)
        return found, more


class _Body:
    """Pieces on their way from the event loop to a thread, which waits for the loop only where none has come yet."""

    def __init__(self) -> None:
        self._pieces: SimpleQueue[list[bytes] | Exception | None] = SimpleQueue()
        self._room, self._loop = asyncio.Semaphore(_AHEAD), asyncio.get_running_loop()

    async def put(self, piece: list[bytes]) -> None:
        await self._room.acquire()
        self._pieces.put(piece)

    def end(self, broken: Exception | None) -> None:
        self._pieces.put(broken)

    def __iter__(self) -> Iterator[bytes]:
        """Runs in the thread. A body that broke off ends in what broke it, and never as if it were whole."""
        while isinstance(piece := self._pieces.get(), list):
            self._loop.call_soon_threadsafe(self._room.release)
            yield from piece
        if piece is not None:
            raise piece
