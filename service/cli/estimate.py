"""`allo estimate`: what a job will take, before it is submitted."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.jobs import add_job, asked
from service.cli.sweeps import settings_told
from service.cli.terminal import duration, err, out, shown

_EPILOG = """\
examples:
  allo estimate train.jsonl --validation heldout.jsonl --model smollm2 --method allo --stage sft
  allo estimate file-… --model smollm2 --set n_epochs=3 --json        seconds and bytes, for programs
  allo estimate file-… --model smollm2 --method allo --sweep improve.beta=0.1,0.2       all jobs of a sweep

The arguments are those of `allo submit`. The files are uploaded, as an estimate looks into them, and no job is made:
`allo submit` then finds them there. Times are h:mm:ss, of one stage after another with nothing else under way.
"""

Json = dict[str, Any]


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    add_job(command(commands, "estimate", "tell what a job will take, without submitting it", _EPILOG, _run))


def _run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        body = asked(args, client)
        found = client.estimate_sweep(body) if args.sweep else client.estimate(body)
    shown(args, found, lambda: points_table(found) if args.sweep else _table(found))
    if not args.json:
        for line in (*found["notes"], *_past(found["past"])):
            err.print(line, style="yellow", markup=False)
        out.print(
            f"\nThe training file is {found['training_file']}: allo submit {found['training_file']} …", markup=False
        )
    return 0


def _table(found: Json) -> Table:
    table = _totalled("stage", found)
    table.add_column("on")
    for stage in found["stages"]:
        cells = ("reused", "", "", "", "") if stage["reused"] else _cells(stage)
        table.add_row(stage["name"], *cells, "" if stage["reused"] else _where(stage["workers"]))
    return table


def points_table(found: Json) -> Table:
    """A line a point of a sweep."""
    table = _totalled("point", found)
    table.add_column("computes")
    for one in found["points"]:
        computes = ", ".join(one["computes"]) or "nothing"
        table.add_row(settings_told(one["point"]), *_cells(one), computes)
    return table


def _totalled(first: str, found: Json) -> Table:
    table = Table(show_footer=True)
    columns = (first, "tokens", "time", "between", "memory", "disk")
    for name, footer in zip(columns, ("total", *_cells(found)), strict=True):
        table.add_column(name, footer, justify="left" if name == first else "right")
    return table


def _cells(taking: Json) -> tuple[str, ...]:
    """Tokens, time, band, memory, disk."""
    band = taking["seconds"]
    return (
        "?" if taking["tokens"] is None else f"{taking['tokens']:,}",
        "?" if band is None else duration(band["expected"]),
        "?" if band is None else f"{duration(band['low'])} – {duration(band['high'])}",
        _gib(taking["peak_memory_bytes"]),
        _gib(taking["disk_bytes"]),
    )


def _where(workers: list[Json]) -> str:
    if not workers:
        return "no worker"
    others = sum(found["count"] for found in workers) - 1
    return f"{workers[0]['kind']}{f', or {others} more' if others else ''}"


def _past(past: Json) -> list[str]:
    ratios = past["seconds_ratio"]
    if ratios is None:
        return []
    stages, jobs = past["stages"], past["jobs"]
    return [
        f"Of your latest {jobs} estimated jobs, {stages} stages took {ratios['median']:.2f} times what was expected "
        f"(mostly {ratios['low']:.2f} to {ratios['high']:.2f})."
    ]


def _gib(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**30:.2f} GiB"
