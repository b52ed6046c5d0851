"""`allo workers`: the workers that there are, what each has and what it runs."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.terminal import shown

WIDTH, LABEL = 80, 11
"""Letters of a line, and of what stands before what a worker has: it fits the narrowest terminal."""

_EPILOG = """\
examples:
  allo workers                          what each has, and what it runs
  allo workers --json                   the same as JSON, in bytes and Unix seconds

The key must have the scope admin, as the first one of `allo up` has. A worker on another machine needs
ALLO_DATABASE_URL, ALLO_BROKER_URL and ALLO_STORE_URL of this service, and a data folder of its own:

  ALLO_DATABASE_URL=postgresql://… ALLO_BROKER_URL=redis://… ALLO_STORE_URL=file:///shared/store python -m worker
"""

NOBODY = "No worker is there: start one with `allo up`, or `python -m worker`. Jobs wait until then."


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    command(commands, "workers", "show the workers that live, what they have and what they run", _EPILOG, run)


def run(args: argparse.Namespace) -> int:
    """Print the workers, a paragraph each."""
    with connect(args) as client:
        found = client.workers()
    shown(args, found, lambda: "\n\n".join(map(in_words, found)) or NOBODY)
    return 0


def in_words(worker: Mapping[str, Any], width: int = WIDTH) -> str:
    """A worker, as the API gives it, in words: its name, and what it has and does below."""
    lines = [str(worker["id"])]
    for label, parts in _parts(worker).items():
        folded = [line for part in parts for line in textwrap.wrap(part, width - LABEL - 2, break_on_hyphens=False)]
        labels = [label, *[""] * (len(folded) - 1)]
        lines += [f"  {name:<{LABEL}}{line}" for name, line in zip(labels, folded, strict=True)]
    return "\n".join(lines)


def _parts(worker: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is said of it, by what it is about."""
    slots, backends = worker["slots"], worker["backends"].items()
    runs = [f"{stage['name']} of {stage['job_id']}" for stage in worker["stages"]]
    return {
        "host": [f"{worker['host']}, last sign of life at {datetime.fromtimestamp(worker['beat_at']):%H:%M:%S}"],
        "devices": [*map(_device, worker["devices"])] or ["none: it computes on its cores"],
        "machine": [
            f"{worker['cores']} cores, {_gib(worker['memory_bytes'])}, {slots} stage{'s' * (slots != 1)} at once"
        ],
        "computes": [", ".join(worker["precisions"])],
        "installed": [
            ", ".join(f"{name} {version}" for name, version in backends) or "nothing beside the engine's own"
        ],
        "code": [f"{worker['code_version'][:8]}; its speed is {'known' if worker['calibrated'] else 'not known yet'}"],
        "runs": runs or ["nothing"],
    }


def _device(device: Mapping[str, Any]) -> str:
    memory = "" if device["memory_bytes"] is None else f", {_gib(device['memory_bytes'])}"
    return f"{device['name']}: {device['kind']}{memory}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
