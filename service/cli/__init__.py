"""The `allo` command. Of its commands, the one that is meant is loaded alone: one that serves must not hold what others
need, and whoever types one waits for no other."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping

from service.cli.commands import whole
from service.cli.terminal import reported

_EPILOG = """\
first steps:
  allo demo                             align a small model on this machine, start to end
  allo up                               start the service and print its URL and key
  allo models add NAME FOLDER           register the model to align
  allo submit train.jsonl --model NAME --watch
  allo download ftjob-… ./aligned

`allo COMMAND --help` shows a command's options and examples.
"""

COMMANDS: Mapping[str, str] = {
    "up": "up.add",
    "demo": "apart.add_demo",
    "submit": "jobs.add_submit",
    "estimate": "estimate.add",
    "watch": "jobs.add_watch",
    "download": "jobs.add_download",
    "sweep": "sweeps.add",
    "compare": "comparing.add",
    "chat": "chat.add",
    "export": "exports.add",
    **dict.fromkeys(("jobs", "cancel", "pause", "resume", "retry", "priority", "delete", "events"), "manage.add"),
    "files": "files.add",
    "webhooks": "webhooks.add",
    **dict.fromkeys(("merge", "info"), "deltas.add"),
    "models": "local.add_models",
    "keys": "local.add_keys",
    "workers": "workers.add",
    "bench": "apart.add_bench",
    "doctor": "doctor.add",
    **dict.fromkeys(("backup", "restore"), "backup.add"),
    "chaos": "chaos.add",
    "api": "api.add",
    "completion": "completion.add",
}
"""What adds each command, in the order of the help: a function of a module beside this one."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    given = sys.argv[1:] if argv is None else argv
    args = parser(given[0] if given else "").parse_args(given)
    return reported(lambda: args.run(args))


def parser(command: str = "") -> argparse.ArgumentParser:
    """What the command line may say, as far as this command goes; of any other word, all of it."""
    allo = whole(
        prog="allo",
        description="Align language models: upload data, submit a job, watch it, download the aligned model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = allo.add_subparsers(required=True, metavar="COMMAND")
    for adding in [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values()):
        module, _, add = adding.partition(".")
        getattr(importlib.import_module(f"service.cli.{module}"), add)(commands)
    return allo


if __name__ == "__main__":
    sys.exit(main())
