"""What parts are broken with does what it says, and no more."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from service.chaos import preload
from service.chaos.wire import Wire
from tests.waiting import PATIENCE

CLOCKS = "import time; print(time.time(), time.clock_gettime(time.CLOCK_MONOTONIC))"
FLUSHES = """
import os, sys
with open(sys.argv[1], "wb") as file:
    for _ in range(2):
        try:
            os.fsync(file.fileno())
            print("flushed")
        except OSError as error:
            print(error.strerror)
"""


@pytest.fixture
def told(tmp_path: Path) -> Iterator[preload.Told]:
    library = preload.built(tmp_path)
    if library is None:
        pytest.skip("there is no C compiler")
    with closing(preload.Told(library, tmp_path / "told")) as told:
        yield told


def said(told: preload.Told, program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=dict(told.environment), capture_output=True, text=True, check=True).stdout


def test_a_wall_clock_leaps_and_no_monotone_one(told: preload.Told) -> None:
    told.tell(ahead=-86_400)
    wall, monotone = map(float, said(told, CLOCKS).split())
    assert -90_000 < wall - time.time() < -86_000
    assert abs(monotone - time.monotonic()) < PATIENCE


def test_so_many_fsyncs_fail_and_no_more(told: preload.Told, tmp_path: Path) -> None:
    told.tell(failing=1)
    assert said(told, FLUSHES, str(tmp_path / "file")).splitlines() == ["Input/output error", "flushed"]


class Echo(socketserver.BaseRequestHandler):
    """Says what it hears."""

    def handle(self) -> None:
        with suppress(OSError):
            while data := self.request.recv(100):
                self.request.sendall(data)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """Leads to a server that says what it hears."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        with closing(Wire("wire", ("127.0.0.1", server.server_address[1]))) as wire:
            yield wire
        server.shutdown()
        serving.join()


def _connected(wire: Wire) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", wire.port), timeout=PATIENCE)
    connection.sendall(b"hello")
    return connection


def test_a_wire_that_is_cut_breaks_what_is_open_and_takes_nothing_new_until_it_is_mended(wire: Wire) -> None:
    with _connected(wire) as connection:
        assert connection.recv(100) == b"hello"
        wire.cut()
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    with suppress(ConnectionResetError, BrokenPipeError), _connected(wire) as connection:
        assert connection.recv(100) == b""
    wire.mend()
    with _connected(wire) as connection:
        assert connection.recv(100) == b"hello"


@pytest.mark.parametrize("way", ["out", "in"])
def test_on_a_wire_that_is_stuck_nothing_is_lost_and_nothing_passes(wire: Wire, way: str) -> None:
    wire.stick(way)
    with _connected(wire) as connection:
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        wire.mend()
        connection.settimeout(PATIENCE)
        assert connection.recv(100) == b"hello"
