"""A TCP port that leads to a unix socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service.chaos.relay import Relay


class SocketRelay(Relay):
    """A TCP port that leads to a unix socket: how a server of this machine is reached from the second host."""

    def __init__(self, address: str, socket: Path) -> None:
        self._socket = socket
        super().__init__(address)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_unix_connection(self._socket)
        except OSError:  # nobody listens there
            writer.transport.abort()
            return
        self.ends.add(forth)
        try:
            await asyncio.gather(_copy(reader, forth), _copy(back, writer))
        finally:
            _end(forth)
            _end(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    _end(writer)


def _end(writer: asyncio.StreamWriter) -> None:
    """Close it once: what ends TLS twice is never closed."""
    if not writer.is_closing():
        writer.close()
