"""`allo workers`: the workers that there are, what each has and what it runs."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.terminal import shown

_EPILOG = """\
examples:
  allo workers                          a table
  allo workers --json                   the same as JSON, in bytes and Unix seconds

The key must have the scope admin, as the first one of `allo up` has. A worker on another machine needs
ALLO_DATABASE_URL, ALLO_BROKER_URL and ALLO_STORE_URL of this service, and a data folder of its own:

  ALLO_DATABASE_URL=postgresql://… ALLO_BROKER_URL=redis://… ALLO_STORE_URL=file:///shared/store python -m worker
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    command(commands, "workers", "show the workers that live, what they have and what they run", _EPILOG, run)


def run(args: argparse.Namespace) -> int:
    """Print the workers, a line each."""
    with connect(args) as client:
        found = client.workers()
    shown(args, found, lambda: _table(found))
    return 0


def _table(workers: list[dict[str, Any]]) -> Table | str:
    if not workers:
        return "No worker is there: start one with `allo up`, or `python -m worker`. Jobs wait until then."
    table = Table("worker", "devices", "memory", "cores", "slots", "installed", "calibrated", "code", "runs")
    for worker in workers:
        table.add_row(
            worker["id"],
            "\n".join(map(_device, worker["devices"])) or "none: the CPU",
            _gib(worker["memory_bytes"]),
            str(worker["cores"]),
            str(worker["slots"]),
            "\n".join(f"{name} {version}" for name, version in worker["backends"].items()) or "-",
            "yes" if worker["calibrated"] else "not yet",
            worker["code_version"][:8],
            "\n".join(f"{stage['name']} of {stage['job_id']}" for stage in worker["stages"]) or "nothing",
        )
    return table


def _device(device: dict[str, Any]) -> str:
    memory = "" if device["memory_bytes"] is None else f", {_gib(device['memory_bytes'])}"
    return f"{device['name']}: {device['kind']}{memory}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
