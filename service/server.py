"""The web server: `python -m service.server`. uvicorn, with bounds on what a connection may hold up."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import resource
import socket
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.errors import envelope
from service.api.scope import new_request_id
from service.footprint import one_heap, settle
from service.logs import configure
from service.migrating import NoDatabase
from service.settings import Settings
from service.starting import settings_or_end

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 2**16

READ_BYTES = 2**20
"""Bytes that are read from a connection at a time, at most."""

OWN_FILES = 500
"""Files that are open beside the connections: the database's, those that are sent or received."""

_ADVICE = "raise the hard limit of open files (ulimit -Hn, LimitNOFILE), or lower ALLO_MAX_CONNECTIONS"


INVALID = (400, "This is not an HTTP request that can be understood.", "invalid_http")
NO_HOST = (400, "A request of HTTP/1.1 has one header Host.", "invalid_http")  # RFC 9112, 3.2
TOO_LARGE = (431, f"The request's head is larger than {MAX_HEAD_BYTES} bytes.", "head_too_large")


@dataclass(frozen=True)
class Bounds:
    """What connections may hold up. Seconds: `head` until a request's head has come whole; `body` without a byte of a
    body that is waited for; `taking` without a byte taken of an answer; `look` between two looks at each."""

    connections: int = 2000
    head: float = 10.0
    body: float = 30.0
    taking: float = 120.0
    look: float = 2.0


class Connection(HttpToolsProtocol):
    """A connection that is closed where its client stops halfway, or sends a head without end. What is no HTTP is
    answered in our shape."""

    bounds = Bounds()
    _wrong = INVALID

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_protocol(Reader(self))
        self._untaken, self._taken = 0, self.loop.time()
        self._await_head()
        if len(self.connections) > self.bounds.connections:
            self._refuse(503, "Too many connections at the moment.", "too_many_connections")
        else:
            self.loop.call_later(self.bounds.look, self._look)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)
        self.received += len(data)
        if self._in_head and self.received > MAX_HEAD_BYTES:
            self._refuse(*TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Raises what ends the parser, where the head is one to refuse: `send_400_response` follows."""
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD_BYTES:
            self._wrong = TOO_LARGE  # it came in one read
        elif self.parser.get_http_version() == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            self._wrong = NO_HOST
        if self._wrong is not INVALID:
            raise ValueError(self._wrong)
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """As uvicorn, but for its two copies of a piece that is handed on before the next comes."""
        cycle: Any = self.cycle
        if not cycle.body:
            cycle.body = b""  # with nothing before it, a piece stays what it is
        elif isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)  # grows without a copy: there may be thousands in a read
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the signature is uvicorn's
        self._refuse(*self._wrong)

    def _await_head(self) -> None:
        self._in_head, self.received = True, 0
        self._began = self._heard = self.loop.time()

    def _look(self) -> None:
        """Close the connection where its client is overdue; look again where not."""
        if self.transport.is_closing():
            return
        now, cycle = self.loop.time(), self.cycle
        in_body = cycle is not None and cycle.more_body and not cycle.response_complete and not self.flow.read_paused
        if self._in_head and now - self._began > self.bounds.head:
            self._refuse(408, "The request's head did not come in time.", "request_timeout")
        elif not self._in_head and in_body and now - self._heard > self.bounds.body:
            self._refuse(408, "The rest of the body did not come in time.", "request_timeout")
        elif self._takes_nothing(now):
            log.warning("connection_dropped reason=%s client=%s", "its answer is not taken", self.client)
            self.transport.abort()
        else:
            self.loop.call_later(self.bounds.look, self._look)

    def _takes_nothing(self, now: float) -> bool:
        """Whether the client has left its answer lying for too long."""
        untaken = self.transport.get_write_buffer_size()
        if not untaken or untaken != self._untaken:
            self._untaken, self._taken = untaken, now
        return now - self._taken > self.bounds.taking

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer, where no answer has begun, and close."""
        name = new_request_id()
        log.warning("connection_refused status=%s code=%s request_id=%s client=%s", status, code, name, self.client)
        if self._in_head or self.cycle is None or not self.cycle.response_started:
            body = envelope(status, message, code=code)
            head = (
                f"HTTP/1.1 {status} {code}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {name}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()


class Reader(asyncio.BufferedProtocol):
    """Reads for a connection, into one place for all: what is read is copied out of it at once. At a time it reads as
    much as has come of the request already, so an upload costs few reads, and a body that nobody wants holds little."""

    _room = memoryview(bytearray(READ_BYTES))

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the signature is asyncio's
        return self._room[: max(self._connection.received, MAX_HEAD_BYTES)]

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(self._room[:nbytes])  # type: ignore[arg-type]  # the parser takes any buffer


def config(app: ASGIApp, bounds: Bounds, **options: Any) -> uvicorn.Config:
    """How uvicorn serves the app."""
    protocol = type("Connection", (Connection,), {"bounds": bounds})
    return uvicorn.Config(
        app, http=protocol, ws="none", log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=5, **options,
    )  # fmt: skip


class Server(uvicorn.Server):
    """Ends the live streams as soon as it is told to stop: it waits for what is open before all else."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.context.feed.close()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def serve(settings: Settings, host: str, port: int, descriptor: int | None = None) -> None:
    """Serve until SIGTERM, on a socket that is already listening where there is one."""
    one_heap()
    gc.disable()  # what is loaded now stays: one look for garbage in it suffices
    sys.modules["pydantic.v1"] = None  # type: ignore[assignment]  # FastAPI would look for models of it: there are none
    from service.app import create_app

    configure(settings.log_format, settings.log_level)
    bounds = Bounds(allowed_connections(settings.max_connections))
    sockets = None if descriptor is None else [socket.socket(fileno=descriptor)]
    app = create_app(settings)
    sys.setswitchinterval(0.0005)  # threads that check uploads give way to the event loop ten times sooner
    settle()
    gc.enable()
    Server(config(app, bounds, host=host, port=port)).run(sockets)


def allowed_connections(wanted: int) -> int:
    """As many connections as are wanted, or as the system has open files for, beside ours: this process may open that
    many from then on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + OWN_FILES if hard == resource.RLIM_INFINITY else min(wanted + OWN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    allowed = min(wanted, max(files - OWN_FILES, files // 2))
    if allowed < wanted:
        log.warning("few_open_files hard_limit=%s connections=%s wanted=%s advice=%s", hard, allowed, wanted, _ADVICE)
    return allowed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fd", type=int)
    args = parser.parse_args()
    try:
        serve(settings_or_end(), args.host, args.port, args.fd)
    except NoDatabase as error:
        log.critical("not_started error=%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
