"""What a connection may hold up: clients that stop halfway, send no HTTP, or come in too great a number."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from fastapi import FastAPI, Response
from starlette.types import Receive, Scope, Send

from service.server import MAX_HEAD_BYTES, READ_BYTES, Bounds
from tests.apps import on_a_port
from tests.integration.service.domain import Domain
from tests.waiting import PATIENCE, until


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    """The app behind a server with little patience."""
    bounds = Bounds(connections=8, head=0.5, body=0.5, taking=0.5, look=0.1)
    with on_a_port(app, bounds, lifespan="off") as port:
        yield port


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> tuple[int, str]:
    """The status and the error's code, once the server has closed the connection."""
    with connection:
        received = b""
        while part := connection.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"x-request-id: req-" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow"])
def test_a_head_that_does_not_come_ends_its_connection(port: int, sent: bytes) -> None:
    assert answer(connect(port, sent)) == (408, "request_timeout")


def test_a_body_that_stops_halfway_ends_its_connection(port: int, secret: str) -> None:
    head = f"POST /v1/fine_tuning/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    assert answer(connect(port, head.encode() + b'{"model"')) == (408, "request_timeout")


@pytest.mark.parametrize("end", [b"", b"\r\n"])
@pytest.mark.parametrize("line", [b"X-A: %s\r\n" % (b"a" * 70_000), b"X: y\r\n" * 20_000])
def test_a_head_that_is_too_large_is_refused_whole_or_not(port: int, line: bytes, end: bytes) -> None:
    connection = connect(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + line + end)
    assert answer(connection) == (431, "head_too_large")


def test_a_path_that_is_too_large_is_refused(port: int) -> None:
    connection = connect(port, b"GET /healthz?%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 70_000))
    assert answer(connection) == (431, "head_too_large")


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
def test_a_request_names_one_host_unless_it_is_of_an_earlier_version(port: int, hosts: bytes) -> None:
    """RFC 9112, 3.2."""
    assert answer(connect(port, b"POST /healthz HTTP/1.1\r\n" + hosts + b"Content-Length: 2\r\n\r\n{}")) == (
        400,
        "invalid_http",
    )
    with connect(port, b"GET /healthz HTTP/1.0\r\n\r\n") as connection:
        assert connection.recv(12).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nBad Header\r\n\r\n"])
def test_what_is_no_http_is_answered_in_our_shape(port: int, sent: bytes) -> None:
    assert answer(connect(port, sent)) == (400, "invalid_http")


def read_whole(request: bytes) -> list[bytes]:
    """The pieces in which an app gets the body of a request to the server."""
    pieces = list[bytes]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message["more_body"]
        await Response()(scope, receive, send)

    with on_a_port(app, lifespan="off") as port, connect(port, request) as connection:
        assert connection.recv(12) == b"HTTP/1.1 200"
    return pieces


CONTENT = b"0123456789abcdef" * 2**19


def test_a_body_is_read_in_pieces_no_larger_than_what_has_come_of_it() -> None:
    """An upload costs few reads, and a body that nobody wants takes no room."""
    pieces = read_whole(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(CONTENT), CONTENT))
    assert b"".join(pieces) == CONTENT
    for place, piece in enumerate(pieces):
        assert len(piece) <= min(sum(map(len, pieces[:place])), READ_BYTES) + 2 * MAX_HEAD_BYTES


def test_a_body_in_a_large_chunk_and_thousands_of_small_ones_comes_as_it_was_sent() -> None:
    small = (CONTENT[place : place + 1] for place in range(300_000, 320_000))
    chunks = (CONTENT[:300_000], *small, CONTENT[320_000:], b"")
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    assert b"".join(read_whole(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)) == CONTENT


def test_an_answer_that_is_not_taken_ends_its_connection(port: int, secret: str, served: Domain) -> None:
    large = served.store.put_stream([b"x" * 2**20] * 32)
    served.add_file("file-large", sha256=large.sha256, bytes=large.size)
    request = f"GET /v1/files/file-large/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n\r\n"
    process, connection = psutil.Process(), socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(request.encode())
    ours = connection.getsockname()

    def is_open() -> bool:
        return any(one.raddr == ours and one.laddr.port == port for one in process.net_connections())

    until(is_open)
    until(lambda: not is_open())
    received = 0
    with connection, suppress(ConnectionResetError):
        while part := connection.recv(2**16):
            received += len(part)
    assert received < large.size


def test_one_connection_too_many_is_sent_away_and_room_is_made_again(port: int, served: Domain) -> None:
    many = [connect(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(8)]
    for one in many:
        assert one.recv(12) == b"HTTP/1.1 200"
    assert answer(connect(port)) == (503, "too_many_connections")
    for one in many:
        one.close()

    def served_again() -> bool:
        with connect(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
            return connection.recv(12) == b"HTTP/1.1 200"

    until(served_again)


@pytest.mark.parametrize(("hard", "connections"), [(1200, 700), (300, 150)])
def test_there_are_as_many_connections_as_open_files_allow_and_the_log_says_so(hard: int, connections: int) -> None:
    code = f"""
import resource
from service.server import allowed_connections
resource.setrlimit(resource.RLIMIT_NOFILE, (200, {hard}))
print(allowed_connections(100), allowed_connections(2000), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["100", str(connections), str(hard), str(hard)]
    assert f"hard_limit={hard} connections={connections} wanted=2000" in found.stderr
