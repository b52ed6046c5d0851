"""`allo compare`: models of any jobs held against each other, case by case."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.terminal import CommandError, out, shown

_EPILOG = """\
examples:
  allo compare ftjob-1 ftjob-2                        the aligned models of two jobs, the first minus the second
  allo compare ftjob-1:improve ftjob-1:warmup         two models of one job: ALLO's and vanilla DPO's
  allo compare ftjob-1 ftjob-2 ftjob-3 --against ftjob-4 ftjob-5 ftjob-6
                                                      several seeds: intervals over seeds and problems

The jobs must have held-out problems in common; what others they have is left out, and counted.
"""

_ANSWERS = 5
"""Changed answers that the terminal shows; --json has a hundred."""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "compare", "compare models of any jobs, problem by problem", _EPILOG, _compare)
    parser.add_argument("runs", nargs="+", metavar="JOB[:MODEL]", help="models by their names in the jobs' reports")
    parser.add_argument("--against", nargs="+", metavar="JOB[:MODEL]", help="with what they are compared, one each")


def _compare(args: argparse.Namespace) -> int:
    ours, theirs = args.runs, args.against
    if theirs is None:
        if len(ours) != 2:
            raise CommandError("Name two models, or several and, behind --against, as many others.")
        ours, theirs = ours[:1], ours[1:]
    with connect(args) as client:
        found = client.compare(ours, theirs)
    if args.json:
        shown(args, found, str)
    else:
        show_comparison(found)
    return 0


def show_comparison(found: dict[str, Any]) -> None:
    """A line a measure, and the first answers that changed."""
    pairs, left_out = found["pairs"], found["left_out"]
    title = f"{pairs[0]['ours']} against {pairs[0]['theirs']}" + (f" and {len(pairs) - 1} more" if pairs[1:] else "")
    table = Table("measure", "first", "second", "difference", "95 % interval", "p", title=title)
    for row in found["measures"]:
        write = "{:.4f}".format if row["better"] == "lower" else "{:.1%}".format
        signed = "{:+.4f}".format if row["better"] == "lower" else "{:+.1%}".format
        interval = f"{signed(row['low'])} … {signed(row['high'])}"
        figures = write(row["ours"]), write(row["theirs"]), signed(row["difference"]), interval
        table.add_row(row["measure"], *figures, f"{row['p']:.3f}")
    out.print(table)
    missing = f"; {left_out} more are not in all of them and were left out" if left_out else ""
    out.print(f"{found['cases']} held-out cases{missing}.")
    if changed := found["changed"]:
        out.print(f"Right in the first alone: {changed['gained']}; in the second alone: {changed['lost']}.")
        for answer in changed["shown"][:_ANSWERS]:
            _show_answer(answer)


def _show_answer(answer: dict[str, Any]) -> None:
    if answer["problem"] is None:
        return
    right = "first" if answer["gained"] > answer["lost"] else "second"
    out.print(f"\n{_line(answer['problem'])}", markup=False)
    out.print(f"  first: {_line(answer['ours'])}\n  second: {_line(answer['theirs'])}\n  right: {right}", markup=False)


def _line(text: str) -> str:
    """A text's first 150 characters, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 150 else f"{flat[:149]}…"
