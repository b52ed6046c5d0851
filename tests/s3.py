"""A real server that speaks S3, in a process of its own, and a wire to it that can be cut."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import httpx

from service.chaos.relay import Relay
from service.storage.access import S3
from tests.waiting import until

BUCKET = "artifacts"


@contextmanager
def s3_server(host: str = "127.0.0.1") -> Iterator[str]:
    """moto's; yields its endpoint. Its bucket is `BUCKET`."""
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", host, "-p", "0"]
    with NamedTemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            told = until(lambda: re.search(rb"http://[\d.]+:\d+", Path(log.name).read_bytes()))
            endpoint = told[0].decode()
            httpx.put(f"{endpoint}/{BUCKET}").raise_for_status()
            yield endpoint
        finally:
            server.kill()


def reached(endpoint: str, cache: Path, **more: Any) -> S3:
    """How the server is reached."""
    return S3(cache=cache, endpoint=endpoint, access_key="ours", secret_key="secret", **more)


def settings_of(endpoint: str, prefix: str) -> dict[str, str]:
    """The fields of settings whose store is there."""
    keys = {"s3_access_key": "ours", "s3_secret_key": "secret"}
    return {"store_url": f"s3://{BUCKET}/{prefix}", "s3_endpoint": endpoint, **keys}


class Wire(Relay):
    """A port that leads to the server. `bytes_left` counts what still passes in each direction, None for all; what has
    used it up is cut. While it is `frozen`, nothing passes, and nobody is told; `holds` says that something would."""

    def __init__(self, endpoint: str, address: str = "127.0.0.1") -> None:
        _, host, port = re.split(r"[:/]+", endpoint)
        self.mend()
        super().__init__(address, (host, int(port)))
        self.endpoint = f"http://{address}:{self.port}"

    def mend(self) -> None:
        self.bytes_left: dict[str, int | None] = {"in": None, "out": None}
        self.frozen = self.holds = False

    async def passing(self, way: str, data: bytes) -> bool:
        while self.frozen:
            self.holds = True
            await asyncio.sleep(0.05)
        left = self.bytes_left[way]
        if left is None:
            return True
        self.bytes_left[way] = left - len(data)
        return left >= len(data)


def unused_endpoint() -> str:
    """An address at which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"
