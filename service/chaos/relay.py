"""A TCP port that leads elsewhere: it runs in a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress


class Relay:
    """Serves at `address` on a free `port`, from its making until it is closed. Each connection is its subclass's;
    what it opens is to be added to `ends`."""

    def __init__(self, address: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.ends = set[asyncio.StreamWriter]()
        self._server = self.loop.run_until_complete(asyncio.start_server(self._carry, address, 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
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
        """Carry a connection to its end."""
        raise NotImplementedError

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _stop(self) -> None:
        self._server.close()
        self.abort()  # what waits for the other side's farewell would wait on
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self.abort()
        await asyncio.sleep(0.05)  # what was aborted is closed in a later turn of the loop
