"""`allo chaos`: break a running service in every way, and check that it stays right."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from service.cli.commands import Commands, add_json, described
from service.cli.terminal import err, out

_EPILOG = """\
examples:
  allo chaos                            ten trials
  allo chaos --trials 300 --seed 1      as many as a release takes, some 50 minutes on two cores
  allo chaos --trials 1 --seed 57       the faults of trial 57 again
  allo chaos --grown                    on PostgreSQL and a bucket (of packages: pip install 'allo[dev]')

A service of its own runs in a folder of its own, with two workers, and a stand-in for the engine. In every trial a
client submits jobs, pauses, cancels and downloads while parts are killed, frozen, cut off, misled about the time, and
so on, as the seed says. Disks are filled where this user may mount, clocks set where there is a C compiler. Then every
accepted job must end well, with one commit a stage, events without a gap, artifacts that verify, and no process left.
The history is in the folder: history.jsonl, a line for whatever anybody did or saw.
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = described(
        commands, "chaos", "break a running service in every way, and check that it stays right", _EPILOG
    )
    parser.add_argument("--trials", type=int, default=10, help="how many (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial; the next one has the next (0)")
    parser.add_argument("--grown", action="store_true", help="on PostgreSQL and a bucket, not on SQLite and a folder")
    parser.add_argument("--folder", type=Path, help="a new folder, where all of it runs (a temporary one)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the trials; 1 where a rule was broken."""
    from service.chaos import trials  # here: no other command needs what it breaks with

    folder = args.folder.absolute() if args.folder else Path(tempfile.mkdtemp(prefix="allo-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        (err if args.json else out).print(text, markup=False, highlight=False)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever runs ends with this command
    summary = trials.run(folder, args.trials, args.seed, say, args.grown)
    written = trials.written(summary)
    (folder / "summary.json").write_text(written + "\n", encoding="utf-8")
    broken = ", ".join(map(str, summary.violations))
    result = f"rules were broken in trial {broken}" if broken else "no rule was broken"
    say(f"{summary.trials} trials, {summary.jobs} jobs, {summary.faults.total()} faults: {result}.")
    say(f"History: {folder / 'history.jsonl'}")
    if args.json:
        print(written)  # noqa: T201 - rich would break long lines
    return int(bool(broken))
