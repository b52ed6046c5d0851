"""Which devices this worker has, and how a stage is shown its own. The worker itself touches no device."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.jobs.running.placement import Device

VARIABLE = "CUDA_VISIBLE_DEVICES"
"""What CUDA reads it from, when a process first asks for a device: until then it may change."""

_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits")
_BFLOAT16 = 8.0
"""The compute capability (Ampere's) from which a GPU computes in bfloat16."""


def devices(setting: str, environment: Mapping[str, str], nodes: Path = Path("/dev")) -> tuple[Device, ...]:
    """The devices of this worker: those of the setting, else those that the environment leaves visible, else one for
    each /dev/nvidia0, nvidia1, …. What the setting says of a device's memory counts, else what its driver says."""
    named = setting or environment.get(VARIABLE)
    if named is None:
        named = ",".join(map(str, range(sum(bool(re.fullmatch(r"nvidia\d+", node.name)) for node in nodes.iterdir()))))
    wanted = [part.strip().partition("=") for part in named.split(",") if part.strip()]
    known = _asked(_QUERY) if wanted else ()
    return tuple(_device(name, float(gib) if gib else None, known) for name, _, gib in wanted)


def visible(names: Sequence[str] | None) -> dict[str, str]:
    """What a stage's environment must hold so that it sees these devices alone; None: whatever there is."""
    return {} if names is None else {VARIABLE: ",".join(names)}


def _device(name: str, gib: float | None, known: Sequence[Sequence[str]]) -> Device:
    stated = None if gib is None else round(gib * 2**30)
    for index, uuid, kind, mebibytes, capability in known:
        if name == index or (name.startswith("GPU-") and uuid.startswith(name)):
            return Device(name, kind, stated or int(mebibytes) * 2**20, float(capability) >= _BFLOAT16)
    return Device(name, bytes=stated)


def _asked(query: Sequence[str]) -> tuple[Sequence[str], ...]:
    """(index, uuid, name, MiB, compute capability) of each device that the driver knows; none where it is silent."""
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return tuple(row for row in rows if len(row) == len(("index", "uuid", "name", "MiB", "capability")))
