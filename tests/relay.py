"""A TCP port that leads elsewhere: it runs in a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path


class Relay:
    """Serves at `address` on a free `port`, from its making until it is closed. Each connection is its subclass's;
    what it opens is to be added to `ends`."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.ends: set[asyncio.StreamWriter] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._carry, address, 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.add(writer)
        with suppress(asyncio.CancelledError):  # it is closed
            await self.serve(reader, writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection to its end."""
        raise NotImplementedError

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for end in self.ends:  # one may wait for the other side's farewell
            end.transport.abort()
        await asyncio.sleep(0.05)  # what was aborted is closed in a later turn of the loop


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
