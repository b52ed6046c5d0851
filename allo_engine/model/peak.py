"""What this process holds of memory: of the accelerator's where there is one, else of the machine's. In bytes."""

from __future__ import annotations

import re
from pathlib import Path

import torch


def peak_bytes() -> int:
    """The most that it has held at once."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _counted("VmHWM")


def own_bytes() -> int:
    """What it holds now and shares with no other process, as they do what they map of the same files."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _counted("RssAnon")


def _counted(name: str) -> int:
    """As the kernel counts it."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
