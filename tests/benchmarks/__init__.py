"""`allo bench`: every performance claim as a ratio against a named rival.

Both sides get the same token ids, dtype and threads, each measurement is a fresh process, and the two sides take turns.
What is printed is the median of the repeats and their spread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.case import Case, Figures, Side
from tests.benchmarks.cases import NAMED, PLACES, cases_of

Command = tuple[str, str, str]
"""A benchmark's name, its case's number, and "ours" or "rival"."""


def run(args: argparse.Namespace) -> int:
    names = args.names or [name for name in PLACES if name not in NAMED]
    if unknown := set(names) - set(PLACES):
        print(f"There is no benchmark {unknown.pop()!r}; there are {', '.join(PLACES)}.", file=sys.stderr)
        return 2
    places = [(name, number) for name in names for number in range(len(cases_of(name)))]
    figures: dict[Side, list[Figures]] = {}
    for sides in _together(places):
        figures |= _measure(sides, args.repeats)
    results = [_result(cases_of(name)[number], figures, args.repeats) for name, number in places]
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        _show(results)
    return 0


def _together(places: list[tuple[str, int]]) -> list[dict[Side, Command]]:
    """The sides to measure, each with the command that measures it; those of cases that share one take turns."""
    found: list[dict[Side, Command]] = []
    for name, number in places:
        case = cases_of(name)[number]
        sides = {getattr(case, side): (name, str(number), side) for side in ("ours", "rival")}
        for others in [group for group in found if group.keys() & sides.keys()]:
            found.remove(others)
            sides = others | sides
        found.append(sides)
    return found


def _measure(sides: dict[Side, Command], repeats: int) -> dict[Side, list[Figures]]:
    """Every side's figures; the sides take turns, in one order and then in the other."""
    figures: dict[Side, list[Figures]] = {side: [] for side in sides}
    for number in range(repeats):
        for side, command in list(sides.items())[:: 1 if number % 2 else -1]:
            figures[side].append(_fresh(command))
            found = ", ".join(f"{name} {value:.4g}".strip() for name, value in figures[side][-1].items())
            print(f"{' '.join(command)} {number + 1}/{repeats}: {found}", file=sys.stderr, flush=True)
    return figures


def _result(case: Case, figures: dict[Side, list[Figures]], repeats: int) -> dict[str, Any]:
    all_ours, all_rival = ([found[case.figure] for found in figures[side]] for side in (case.ours, case.rival))
    ours, rival = statistics.median(all_ours), statistics.median(all_rival)
    return {
        "measure": case.measure,
        "ours": ours,
        "rival": rival,
        "rival_name": case.rival_name(),
        "ratio": ours / rival,
        "higher_is_better": case.higher_is_better,
        "goal": case.goal,
        "limit": case.limit,
        "repeats": repeats,
        "ours_spread": [min(all_ours), max(all_ours)],
        "rival_spread": [min(all_rival), max(all_rival)],
    }


def _fresh(command: Command) -> Figures:
    """One measurement in a process of its own; its last line is the figure, or several by name."""
    argv = [sys.executable, "-m", "tests.benchmarks", *command]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found if isinstance(found, dict) else {"": found}


def _show(results: list[dict[str, Any]]) -> None:
    table = Table("measure", "ours", "rival", "rival's name", "ratio", "goal", "limit")
    for row in results:
        spread = [
            f"{row[side]:.4g} ({row[f'{side}_spread'][0]:.4g}–{row[f'{side}_spread'][1]:.4g})"
            for side in ("ours", "rival")
        ]
        sign = {True: "≥", False: "≤", None: "1 ±"}[row["higher_is_better"]]
        table.add_row(
            row["measure"], *spread, row["rival_name"], f"{row['ratio']:.3g}", f"{sign} {row['goal']}", row["limit"]
        )
    Console(width=180).print(table)
