"""Whether the kernel killed for want of memory: it counts."""

from __future__ import annotations

from pathlib import Path

_VMSTAT = Path("/proc/vmstat")


def oom_kills(counters: Path = _VMSTAT) -> int | None:
    """How many processes of this machine, its containers' among them, were killed for want of memory since it started;
    None where the kernel does not say."""
    try:
        lines = counters.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
