"""`allo sweep`: what a sweep found, and how it goes on."""

from __future__ import annotations

import argparse
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column, Table

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.terminal import err, listing, out, shown
from service.cli.watch import EXIT_CODES, followed
from service.client import Client

_EPILOG = """\
examples:
  allo sweep                            the newest 20
  allo sweep ftsweep-…                  a line a point, and the best by the validation file
  allo sweep ftsweep-… --watch          its progress first, until every job has ended
  allo sweep ftsweep-… --cancel         end the jobs that have not ended

`allo submit … --sweep NAME=VALUE,…` starts one. Its jobs are ordinary ones: `allo watch ftjob-…` shows one of them.
"""

Json = dict[str, Any]


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "sweep", "show a sweep's table, or the sweeps", _EPILOG, _run)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="ftsweep-…")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="stay until every job has ended")
    what.add_argument("--cancel", action="store_true", help="cancel every job that has not ended")


def _run(args: argparse.Namespace) -> int:
    with connect(args) as client:
        if args.sweep is None:
            listed = client.sweeps()
            shown(args, listed, lambda: _list(listed))
            return 0
        if args.watch:
            return watched(args, client, args.sweep)
        tell(args, client.cancel_sweep(args.sweep) if args.cancel else client.sweep(args.sweep))
    return 0


def watched(args: argparse.Namespace, client: Client, sweep_id: str) -> int:
    """Shows the sweep's progress and then its table; the exit status is the sweep's."""
    sweep = _watch(client, sweep_id, err if args.json else out)
    tell(args, sweep)
    return EXIT_CODES[sweep["status"]]


def tell(args: argparse.Namespace, sweep: Json) -> None:
    """The table, the best setting, and how far it can be believed."""
    shown(args, sweep, lambda: _table(sweep))
    if args.json:
        return
    if best := sweep["best"]:
        seeds = f", the mean of {len(best['job_ids'])} seeds" if len(best["job_ids"]) > 1 else ""
        told = f"{settings_told(best['setting']) or 'its own settings'}: {_value(best['figure'])}{seeds}"
        out.print(f"Best is {told}. {_interval(best['figure'], '95 % interval {}.')}".rstrip(), markup=False)
    for note in sweep["notes"]:
        err.print(note, style="yellow", markup=False)


def _watch(client: Client, sweep_id: str, console: Console) -> Json:
    """A bar a point."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), TaskProgressColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as progress:
        bars: dict[str, TaskID] = {}

        def show(sweep: Json) -> None:
            for one in sweep["points"]:
                if one["job_id"] not in bars:
                    bars[one["job_id"]] = progress.add_task(settings_told(one["point"]), total=1.0, note="")
                progress.update(bars[one["job_id"]], completed=one["progress"], note=one["status"])

        return followed(lambda: client.sweep(sweep_id), show)


def _table(sweep: Json) -> Table:
    points = sweep["points"]
    names = list(dict.fromkeys(name for one in points for name in one["point"]))
    measure = next((one["figure"]["measure"] for one in points if one["figure"]), "accuracy").replace("_", "-")
    losses = any(one["best_validation_loss"] is not None for one in points)
    columns = (*names, "status", measure, "95 % interval", *(["validation loss"] if losses else []))
    table = Table(*columns, Column("job", overflow="fold"), title=f"{sweep['id']}: {sweep['status']}")
    best = set(sweep["best"]["job_ids"]) if sweep["best"] else set()
    for one in points:
        loss = one["best_validation_loss"]
        figures = (_value(one["figure"]), _interval(one["figure"], "{}")) if one["figure"] else ("", "")
        more = ["" if loss is None else f"{loss:.4f}"] if losses else []
        values = (str(one["point"][name]) for name in names)
        style = "bold" if one["job_id"] in best else None
        table.add_row(*values, one["status"], *figures, *more, one["job_id"], style=style)
    return table


def _list(sweeps: list[Json]) -> Table | str:
    if not sweeps:
        return "There are no sweeps: `allo submit … --sweep NAME=VALUE,…` starts one."
    table = listing("sweep", "status", "jobs", "model", "submitted")
    for one in sweeps:
        counts = ", ".join(f"{count} {status}" for status, count in one["jobs"].items())
        submitted = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["created_at"]))
        table.add_row(one["id"], one["status"], counts, one["model"], submitted)
    return table


def settings_told(point: Json) -> str:
    """`improve.beta 0.2, seed 1`."""
    return ", ".join(f"{name} {value}" for name, value in point.items())


def _value(figure: Json) -> str:
    return _written(figure, figure["value"])


def _interval(figure: Json, sentence: str) -> str:
    if figure["low"] is None:
        return ""
    return sentence.format(f"{_written(figure, figure['low'])} – {_written(figure, figure['high'])}")


def _written(figure: Json, number: float) -> str:
    return f"{number:.1%}" if figure["measure"] == "accuracy" else f"{number:.4f}"
