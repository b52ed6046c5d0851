"""Large writes, as every part of ours makes them."""

from __future__ import annotations

from typing import IO

PIECE = 2**18
"""Bytes that are written through the page cache at a time. More in one call wants pages so large that a virtual machine
may have given them back to its host, and waits for each of them: some seconds a gigabyte."""


def put(stream: IO[bytes], data: bytes | memoryview) -> None:
    """Write bytes, a piece at a time."""
    for place in range(0, len(data), PIECE):
        stream.write(data[place : place + PIECE])
