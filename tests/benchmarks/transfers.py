"""A gigabyte to the service and back, against what must be done with it in any case: copy, fsync and sha256.

The client stands on the same machine and takes its share of the cores; it does no more than the kernel's sendfile, and
on the way back, in a thread of its own, the hash that every client should make. The service checks every line on the
way, which no rival does, and a copy crosses no socket, as a download must: its second rival does nothing but that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from tests.benchmarks.case import Case, Figures
from tests.benchmarks.serving import Server, opened, served

SIZE, HUGE = 2**30, 10 * 10**9
CHUNK, ROOMS = 2**18, 32
FLUSH = 64 * CHUNK
BOUND = 150.0
"""MB over idle."""


def ours(size: int = SIZE) -> Figures:
    """MB/s of an upload that is checked, hashed and flushed, and right behind it of a download that is hashed, written
    and flushed."""
    with TemporaryDirectory() as folder, _open(size) as (server, key):
        source = Path(folder) / "source.jsonl"
        _write(source, material(size))
        began = time.perf_counter()
        made = upload(server, key, size, source)
        uploaded = time.perf_counter()
        assert fetch(server, key, f"/v1/files/{made['id']}/content", Path(folder) / "back") == made["sha256"]
        ended = time.perf_counter()
        return {"upload": size / (uploaded - began) / 1e6, "download": size / (ended - uploaded) / 1e6}


def copied(size: int = SIZE) -> Figures:
    """The same figures of a copy with fsync and a sha256 of it, and right behind it of another."""
    with TemporaryDirectory() as folder:
        source, there, back = (Path(folder) / name for name in ("source.jsonl", "there", "back"))
        _write(source, material(size))
        return {"upload": size / _copy(source, there) / 1e6, "download": size / _copy(there, back) / 1e6}


def _copy(source: Path, copy: Path) -> float:
    """Seconds that a copy, its fsync and its sha256 take."""
    began = time.perf_counter()
    shutil.copyfile(source, copy)
    with copy.open("r+b") as file:
        os.fsync(file.fileno())
        hashlib.file_digest(file, "sha256")
    return time.perf_counter() - began


def crossed(size: int = SIZE) -> Figures:
    """The figure of the same download from a server that does nothing but the kernel's sendfile: what a socket and the
    client take."""
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        source, there = (Path(folder) / name for name in ("source.jsonl", "there"))
        _write(source, material(size))
        _copy(source, there)
        sending = threading.Thread(target=_send, args=(listener, there))
        sending.start()
        began = time.perf_counter()
        fetch(Server(listener.getsockname()[1], psutil.Process()), "", "/", Path(folder) / "back")
        ended = time.perf_counter()
        sending.join()
        return {"download": size / (ended - began) / 1e6}


def _send(listener: socket.socket, path: Path) -> None:
    """Answers one request with a file."""
    connection, _ = listener.accept()
    with connection, path.open("rb") as file:
        connection.recv(2**16)
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {path.stat().st_size}\r\n\r\n".encode())
        connection.sendfile(file)


def huge() -> Figures:
    """The most memory that the service takes over what it has idle, MB, while ten gigabytes that no file holds come in
    and go out; and their pace, MB/s."""
    with _open(HUGE) as (server, key), _watched(server) as most_over_idle:
        began = time.perf_counter()
        made = upload(server, key, HUGE, material(HUGE))
        uploaded, most_in = time.perf_counter(), most_over_idle()
        assert download(server, key, f"/v1/files/{made['id']}/content", len) == made["sha256"]
        ended = time.perf_counter()
        paces = {"upload": HUGE / (uploaded - began) / 1e6, "download": HUGE / (ended - uploaded) / 1e6}
        return {"MB in": most_in, "MB out": most_over_idle(), **paces}


def bound() -> Figures:
    return {"MB in": BOUND, "MB out": BOUND}


def material(size: int) -> Iterator[bytes]:
    """A training file of lines of 2 KB, no two alike, exactly `size` bytes long, some hundred lines at a time."""
    text = "a text of some length " * 90
    left, number = size, 0
    while left:
        lines = [f'{{"problem": "{n} {text}", "solution": "s"}}\n'.encode() for n in range(number, number + 128)]
        number += len(lines)
        piece = b"".join(lines)
        if left < len(piece) + 2 * len(lines[-1]):
            piece = lines[0].replace(b' "s"', b' "' + b"s" * (left - len(lines[0]) + 1) + b'"')
        left -= len(piece)
        yield piece


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _open(size: int) -> Iterator[tuple[Server, str]]:
    """A service that takes files of `size`, and a key; it has answered once, and rests."""
    with opened(max_file_bytes=size) as place, served(place.settings) as server:
        with _asked(server, place.key, b"GET /v1/files HTTP/1.1\r\n") as connection:
            _body(connection)
        server.rest()
        yield server, place.key


@contextmanager
def _watched(server: Server) -> Iterator[Callable[[], float]]:
    """Tells the most memory that the server took over what it had at first, MB."""
    idle, most, done = server.megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], server.megabytes() - idle)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield lambda: most[0]
    finally:
        done.set()
        watching.join()


def upload(server: Server, key: str, size: int, source: Path | Iterable[bytes]) -> dict[str, str]:
    """Sends a file, or what is made on the way; the answer."""
    head = b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    head += b'--edge\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
    tail = b"\r\n--edge--\r\n"
    kind = "POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
    length = f"Content-Length: {len(head) + size + len(tail)}\r\n"
    with _asked(server, key, (kind + length).encode()) as connection:
        if isinstance(source, Path):
            connection.sendall(head)
            with source.open("rb") as file:
                connection.sendfile(file)
            connection.sendall(tail)
        else:
            for piece in chain((head,), source, (tail,)):
                connection.sendall(piece)
        made: dict[str, str] = json.loads(_body(connection))
    return made


def fetch(server: Server, key: str, path: str, to: Path) -> str:
    """Downloads into a file, and flushes it; the sha256 of what came."""
    with to.open("wb", buffering=0) as file:
        flushed = 0

        def take(data: memoryview) -> None:
            nonlocal flushed
            file.write(data)
            if file.tell() - flushed >= FLUSH:  # Linux begins to write: fsync then finds little left to do
                os.posix_fadvise(file.fileno(), flushed, FLUSH, os.POSIX_FADV_DONTNEED)
                flushed += FLUSH

        sha256 = download(server, key, path, take)
        os.fsync(file.fileno())
        return sha256


def download(server: Server, key: str, path: str, take: Callable[[memoryview], object]) -> str:
    """The sha256 of what came, all of which `take` was given; counted in a thread of its own."""
    digest = hashlib.sha256()
    rooms, counting = cycle([memoryview(bytearray(CHUNK)) for _ in range(ROOMS)]), deque[Future[None]]()
    with _asked(server, key, f"GET {path} HTTP/1.1\r\n".encode()) as connection, ThreadPoolExecutor(1) as hand:
        connection.settimeout(None)  # a read then waits for all that it asks for
        left = _length(connection.makefile("rb", buffering=0))
        while left:
            if len(counting) == ROOMS:
                counting.popleft().result()
            room = next(rooms)
            read = connection.recv_into(room, min(CHUNK, left), socket.MSG_WAITALL)
            assert read, "the content ended early"
            counting.append(hand.submit(digest.update, room[:read]))
            take(room[:read])
            left -= read
    return digest.hexdigest()


def _asked(server: Server, key: str, request: bytes) -> socket.socket:
    """A connection on which the head of a request was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=600)
    connection.sendall(
        request + f"Host: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    )
    return connection


def _body(connection: socket.socket) -> bytes:
    stream = connection.makefile("rb")
    return stream.read(_length(stream))


def _length(stream: object) -> int:
    """Reads an answer's head, which must be a 200; how long its body is."""
    status = stream.readline()  # type: ignore[attr-defined]
    assert b" 200 " in status, status
    length = 0
    while (line := stream.readline().lower()) != b"\r\n":  # type: ignore[attr-defined]
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return length


def copying() -> str:
    return "copy + fsync + sha256 on the same disk"


def sending() -> str:
    return "the kernel's sendfile to the same client"


DISK = "the disk, and the cores that client, parser, check and hash share"

CASES = (
    Case("upload of 1 GB, MB/s", ours, copied, copying, 0.6, True, DISK, figure="upload"),
    Case("download of 1 GB, MB/s", ours, copied, copying, 1.0, True, DISK, figure="download"),
    Case("download of 1 GB, MB/s", ours, crossed, sending, 1.0, True, DISK, figure="download"),
)

HUGE_CASES = (
    Case("upload of 10 GB, MB over idle", huge, bound, lambda: "the bound", 1.0, False, "pieces that wait", "MB in"),
    Case("10 GB up and down, MB over idle", huge, bound, lambda: "the bound", 1.0, False, "pieces that wait", "MB out"),
)
