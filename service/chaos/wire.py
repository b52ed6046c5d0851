"""A wire between two parts that can be cut, clogged, deafened and slowed: a port that leads to a server's socket."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

_LOOK_SECONDS = 0.02

Address = Path | tuple[str, int]
"""A unix socket, or a host and its port."""


class Wire:
    """`port` leads to the server while it is open. While `cut`, connections break and none comes about; while `stuck`
    has "out" or "in", nothing passes to or from the server, and nobody is told; what passes, does so `delay` seconds
    late."""

    def __init__(self, name: str, server: Address) -> None:
        self.name, self._server = name, server
        self._open = set[asyncio.StreamWriter]()
        self.mend()
        self._loop = asyncio.new_event_loop()
        self._listener = self._loop.run_until_complete(asyncio.start_server(self._carry, "127.0.0.1", 0))
        self.port: int = self._listener.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Break all connections, and take no new one."""
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._abort)

    def stick(self, *ways: str) -> None:
        """Let nothing pass that way."""
        self._stuck = frozenset(ways)

    def slow(self, seconds: float) -> None:
        """Let all pass late."""
        self._delay = seconds

    def mend(self) -> None:
        """Be as it should."""
        self._is_cut, self._stuck, self._delay = False, frozenset[str](), 0.0

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        self._open.add(writer)
        try:
            with suppress(OSError):
                if not self._is_cut:
                    back, forth = await self._reach()
                    ends.append(forth)
                    self._open.add(forth)
                    await self._copy_both((reader, forth, "out"), (back, writer, "in"))
        finally:
            for end in ends:
                end.close()  # what it has taken, it still sends
            with suppress(OSError):
                await asyncio.gather(*(end.wait_closed() for end in ends))
            self._open.difference_update(ends)

    async def _copy_both(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter, str]) -> None:
        """Until either side closes."""
        copies = [asyncio.ensure_future(self._copy(*way)) for way in ways]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._server, Path):
            return await asyncio.open_unix_connection(str(self._server))
        return await asyncio.open_connection(*self._server)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                await asyncio.sleep(self._delay)
                while way in self._stuck:
                    await asyncio.sleep(_LOOK_SECONDS)
                writer.write(data)
                await writer.drain()

    def _abort(self) -> None:
        for end in self._open:
            end.transport.abort()

    async def _stop(self) -> None:
        self._listener.close()
        self._abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was aborted is closed in a later turn of the loop
