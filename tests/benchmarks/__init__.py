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

from tests.benchmarks.case import Case
from tests.benchmarks.cases import CASES


def run(args: argparse.Namespace) -> int:
    names = [args.name] if args.name else list(CASES)
    if unknown := set(names) - set(CASES):
        print(f"There is no benchmark {unknown.pop()!r}; there are {', '.join(CASES)}.", file=sys.stderr)
        return 2
    results = [
        _measure(case, (name, str(number)), args.repeats) for name in names for number, case in enumerate(CASES[name])
    ]
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        _show(results)
    return 0


def _measure(case: Case, place: tuple[str, str], repeats: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {"ours": [], "rival": []}
    for number in range(repeats):
        for side in ("ours", "rival") if number % 2 else ("rival", "ours"):
            found[side].append(_fresh(place, side))
            print(f"{case.measure}, {side} {number + 1}/{repeats}: {found[side][-1]:.4g}", file=sys.stderr)
    ours, rival = (statistics.median(found[side]) for side in ("ours", "rival"))
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
        "ours_spread": [min(found["ours"]), max(found["ours"])],
        "rival_spread": [min(found["rival"]), max(found["rival"])],
    }


def _fresh(place: tuple[str, str], side: str) -> float:
    """One measurement in a process of its own; its last line is the figure."""
    command = [sys.executable, "-m", "tests.benchmarks", *place, side]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise SystemExit(f"{' '.join(place)} {side} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def _show(results: list[dict[str, Any]]) -> None:
    table = Table("measure", "ours", "rival", "rival's name", "ratio", "goal", "limit")
    for row in results:
        spread = [
            f"{row[side]:.4g} ({row[f'{side}_spread'][0]:.4g}–{row[f'{side}_spread'][1]:.4g})"
            for side in ("ours", "rival")
        ]
        sign = "≥" if row["higher_is_better"] else "≤"
        table.add_row(
            row["measure"], *spread, row["rival_name"], f"{row['ratio']:.3g}", f"{sign} {row['goal']}", row["limit"]
        )
    Console(width=180).print(table)
