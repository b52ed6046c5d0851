"""A TCP port that leads elsewhere: it runs in a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

Address = Path | tuple[str, int]
"""A unix socket, or a host and its port."""


class Relay:
    """Serves at `address` on a free `port`, from its making until it is closed. Each connection leads to the `server`;
    when either side ends it, it ends."""

    def __init__(self, address: str, server: Address) -> None:
        self.loop = asyncio.new_event_loop()
        self.ends = set[asyncio.StreamWriter]()
        self._leads_to = server
        self._listener = self.loop.run_until_complete(asyncio.start_server(self._carry, address, 0))
        self.port: int = self._listener.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends.add(writer)
        with suppress(asyncio.CancelledError):  # it is closed
            await self.serve(reader, writer)

    def abort(self) -> None:
        """Break all that is open; in its loop."""
        for end in self.ends:
            end.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection to its end. What comes first on it, a subclass may have read."""
        ends = [writer]
        try:
            with suppress(OSError):
                back, forth = await self._reach()
                ends.append(forth)
                self.ends.add(forth)
                await self._copy_both((reader, forth, "out"), (back, writer, "in"))
        finally:
            for end in ends:
                if not end.is_closing():  # what ends TLS twice is never closed
                    end.close()  # what it has taken, it still sends
            with suppress(OSError):
                await asyncio.gather(*(end.wait_closed() for end in ends))
            self.ends.difference_update(ends)

    async def passing(self, way: str, data: bytes) -> bool:  # noqa: ARG002 - for whoever lets less pass
        """Return once the data may pass, "out" to the server or "in" from it; False where it ends the connection."""
        return True

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._leads_to, Path):
            return await asyncio.open_unix_connection(str(self._leads_to))
        return await asyncio.open_connection(*self._leads_to)

    async def _copy_both(self, *ways: tuple[asyncio.StreamReader, asyncio.StreamWriter, str]) -> None:
        """Until either side closes."""
        copies = [asyncio.ensure_future(self._copy(*way)) for way in ways]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with suppress(OSError):
            while (data := await reader.read(2**16)) and await self.passing(way, data):
                writer.write(data)
                await writer.drain()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _stop(self) -> None:
        self._listener.close()
        self.abort()  # what waits for the other side's farewell would wait on
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self.abort()
        await asyncio.sleep(0.05)  # what was aborted is closed in a later turn of the loop
