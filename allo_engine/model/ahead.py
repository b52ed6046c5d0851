"""Host work beside the device: what is built ahead in a thread, and goes to the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import torch
from torch import Tensor

Item = TypeVar("Item")

DEPTH = 2
"""So many items stand ready: one that the device takes next, and one more for when one takes long to build."""

_END = object()


def ahead(items: Iterable[Item], depth: int = DEPTH) -> Generator[Item]:
    """The items, of which a thread makes the next `depth` while one is in use.

    What making an item raises is raised in that item's place. Close the iterator (or drop it) to end early: its thread
    ends with the item that it is at.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting = deque(thread.submit(next, source, _END) for _ in range(depth))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, source, _END))
            yield cast("Item", item)


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. From page-locked memory a copy is queued behind the device's work; else the host waits."""
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
