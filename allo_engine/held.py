"""What this process has of its device: the memory that it holds, in bytes, and how busy it keeps it. That is the
accelerator where there is one, else the machine.

Free of torch, which it finds where the process has loaded it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any


def held_bytes() -> int:
    """What it holds now."""
    cuda = _accelerator()
    return int(cuda.memory_allocated()) if cuda else _counted("VmRSS")


def own_bytes() -> int:
    """What it holds now and shares with no other process, as they do what they map of the same files."""
    cuda = _accelerator()
    return int(cuda.memory_allocated()) if cuda else _counted("RssAnon")


def peak_bytes() -> int:
    """The most that it has held at once."""
    cuda = _accelerator()
    return int(cuda.max_memory_allocated()) if cuda else _counted("VmHWM")


def device_use(spent: float, seconds: float) -> float | None:
    """The share of the device that was in use, 0 to 1: of the cores that this process may use, where it `spent` so much
    of the processor's time in so many seconds; of an accelerator what its driver counts of the last moment, None where
    it tells nothing."""
    cuda = _accelerator()
    if cuda is None:
        return min(spent / seconds / len(os.sched_getaffinity(0)), 1.0)
    try:
        return float(cuda.utilization()) / 100
    except Exception:  # whatever the driver, or its library that is not there, raises: a curve less
        return None


def _accelerator() -> Any:
    """Torch's account of it; looking does not load torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _counted(name: str) -> int:
    """As the kernel counts it."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
