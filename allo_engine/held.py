"""What this process holds of memory: of the accelerator's where there is one, else of the machine's. In bytes.

Free of torch, which it finds where the process has loaded it.
"""

from __future__ import annotations

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


def _accelerator() -> Any:
    """Torch's account of it; looking does not load torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _counted(name: str) -> int:
    """As the kernel counts it."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
