"""A wire between two parts that can be cut, clogged, deafened and slowed: a port that leads to a server's socket."""

from __future__ import annotations

import asyncio

from service.chaos.relay import Address, Relay

_LOOK_SECONDS = 0.02


class Wire(Relay):
    """`port` leads to the server while it is open. While `cut`, connections break and none comes about; while `stuck`
    has "out" or "in", nothing passes to or from the server, and nobody is told; what passes, does so `delay` seconds
    late."""

    def __init__(self, name: str, server: Address) -> None:
        self.name = name
        self.mend()
        super().__init__("127.0.0.1", server)

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
        if self._is_cut:
            writer.transport.abort()
        else:
            await super().serve(reader, writer)

    async def passing(self, way: str, data: bytes) -> bool:
        await asyncio.sleep(self._delay)
        while way in self._stuck:
            await asyncio.sleep(_LOOK_SECONDS)
        return await super().passing(way, data)
