"""A wire between two parts that can be cut, clogged, deafened and slowed: a port that leads to a server's socket."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from service.chaos.relay import Relay

_LOOK_SECONDS = 0.02

Address = Path | tuple[str, int]
"""A unix socket, or a host and its port."""


class Wire(Relay):
    """`port` leads to the server while it is open. While `cut`, connections break and none comes about; while `stuck`
    has "out" or "in", nothing passes to or from the server, and nobody is told; what passes, does so `delay` seconds
    late."""

    def __init__(self, name: str, server: Address) -> None:
        self.name, self._leads_to = name, server
        self.mend()
        super().__init__("127.0.0.1")

    def cut(self) -> None:
        """Break all connections, and take no new one."""
        self._is_cut = True
        self.loop.call_soon_threadsafe(self.abort)

    def stick(self, *ways: str) -> None:
        """Let nothing pass that way."""
        self._stuck = frozenset(ways)

    def slow(self, seconds: float) -> None:
        """Let all pass late."""
        self._delay = seconds

    def mend(self) -> None:
        """Be as it should."""
        self._is_cut, self._stuck, self._delay = False, frozenset[str](), 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            with suppress(OSError):
                if not self._is_cut:
                    back, forth = await self._reach()
                    ends.append(forth)
                    self.ends.add(forth)
                    await self._copy_both((reader, forth, "out"), (back, writer, "in"))
        finally:
            for end in ends:
                end.close()  # what it has taken, it still sends
            with suppress(OSError):
                await asyncio.gather(*(end.wait_closed() for end in ends))
            self.ends.difference_update(ends)

    async def _copy_both(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter, str]) -> None:
        """Until either side closes."""
        copies = [asyncio.ensure_future(self._copy(*way)) for way in ways]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._leads_to, Path):
            return await asyncio.open_unix_connection(str(self._leads_to))
        return await asyncio.open_connection(*self._leads_to)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with suppress(OSError):
            while data := await reader.read(2**16):
                await asyncio.sleep(self._delay)
                while way in self._stuck:
                    await asyncio.sleep(_LOOK_SECONDS)
                writer.write(data)
                await writer.drain()
