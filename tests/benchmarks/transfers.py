"""A gigabyte to the service and back, against what must be done with it in any case: copy, fsync and sha256.

The client stands on the same machine and takes its share of the cores; it does no more than the kernel's sendfile, and
on the way back the hash that every client should make.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from service.db import Database
from service.jobs.keys import create_key
from service.migrating import migrate
from service.settings import Settings
from tests.benchmarks.case import Case, Figures

SIZE = 2**30
CHUNK = 2**20
BOUND = 150.0
"""MB over idle."""


def ours(size: int = SIZE) -> Figures:
    """MB/s of an upload that is checked, hashed and flushed, and of a download that is hashed; the most memory that the
    service took meanwhile over what it takes idle, MB."""
    with TemporaryDirectory() as folder:
        source = material(Path(folder) / "source.jsonl", size)
        with served(Path(folder) / "data", size) as (port, key, process):
            answered(port, key, b"GET /v1/files HTTP/1.1\r\n", b"")
            with watched(process) as most_over_idle:
                began = time.perf_counter()
                made = upload(port, key, source)
                uploaded = time.perf_counter()
                assert download(port, key, made["id"], Path(folder) / "back") == made["sha256"]
                ended = time.perf_counter()
            return {
                "upload": size / (uploaded - began) / 1e6,
                "download": size / (ended - uploaded) / 1e6,
                "memory": most_over_idle(),
            }


def copied(size: int = SIZE) -> Figures:
    """The same figures of a copy with fsync, and a sha256 of it."""
    with TemporaryDirectory() as folder:
        source = material(Path(folder) / "source.jsonl", size)
        began = time.perf_counter()
        with source.open("rb") as read, (Path(folder) / "copy").open("wb") as written:
            shutil.copyfileobj(read, written, CHUNK)
            written.flush()
            os.fsync(written.fileno())
        with (Path(folder) / "copy").open("rb") as read:
            hashlib.file_digest(read, "sha256")
        pace = size / (time.perf_counter() - began) / 1e6
        return {"upload": pace, "download": pace, "memory": BOUND}


def material(path: Path, size: int) -> Path:
    """A training file of lines of 2 KB, no two alike, exactly `size` bytes long."""
    text = "a text of some length " * 90
    with path.open("wb") as file:
        left = size
        for number in range(size):
            line = b'{"problem": "%d %s", "solution": "s"}\n' % (number, text.encode())
            if left < 2 * len(line):
                file.write(line.replace(b' "s"', b' "' + b"s" * (left - len(line) + 1) + b'"'))
                break
            left -= file.write(line)
        os.fsync(file.fileno())
    assert path.stat().st_size == size
    return path


@contextmanager
def served(data: Path, size: int) -> Iterator[tuple[int, str, psutil.Process]]:
    """The web process as `allo api` starts it: its port, a key, and itself."""
    settings = Settings(data_dir=data, max_file_bytes=size, min_free_bytes=0)
    settings.open_data_dir()
    migrate(settings.database)
    database = Database(settings.database)
    key = create_key(database, "owner").secret
    database.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "service.server", "--fd", str(listener.fileno())]
        environment = os.environ | settings.to_environment()
        process = subprocess.Popen(
            command, env=environment, pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield listener.getsockname()[1], key, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def watched(process: psutil.Process) -> Iterator[Callable[[], float]]:
    """Tells the most memory that the process took over what it had at first, MB."""
    idle, most, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], process.memory_info().rss - idle)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield lambda: most[0] / 1e6
    finally:
        done.set()
        watching.join()


def upload(port: int, key: str, path: Path) -> dict[str, str]:
    head = b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    head += b'--edge\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
    tail = b"\r\n--edge--\r\n"
    length = len(head) + path.stat().st_size + len(tail)
    kind = (
        f"POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=edge\r\nContent-Length: {length}\r\n"
    )
    with asked(port, key, kind.encode()) as connection, path.open("rb") as file:
        connection.sendall(head)
        connection.sendfile(file)
        connection.sendall(tail)
        made: dict[str, str] = json.loads(_body(connection))
    return made


def download(port: int, key: str, file_id: str, path: Path) -> str:
    """The sha256 of what came, which then lies at `path`."""
    digest = hashlib.sha256()
    with asked(port, key, f"GET /v1/files/{file_id}/content HTTP/1.1\r\n".encode()) as connection:
        stream = connection.makefile("rb", CHUNK)
        length = _length(stream)
        with path.open("wb") as file:
            while length:
                chunk = stream.read(min(CHUNK, length))
                assert chunk, "the content ended early"
                digest.update(chunk)
                length -= file.write(chunk)
    return digest.hexdigest()


def answered(port: int, key: str, request: bytes, body: bytes) -> bytes:
    with asked(port, key, request) as connection:
        connection.sendall(body)
        return _body(connection)


def asked(port: int, key: str, request: bytes) -> socket.socket:
    """A connection on which the head of a request was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=300)
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


def _copy() -> str:
    return "copy + fsync + sha256 on the same disk"


DISK = "the disk, and the cores that client, parser, check and hash share"

CASES = (
    Case("upload of 1 GB, MB/s", ours, copied, _copy, 0.6, True, DISK, figure="upload"),
    Case("download of 1 GB, MB/s", ours, copied, _copy, 1.0, True, DISK, figure="download"),
    Case("memory over idle, MB", ours, copied, lambda: "the bound", 1.0, False, "pieces that wait", figure="memory"),
)
