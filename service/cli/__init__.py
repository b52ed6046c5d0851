"""The `allo` command."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from service.cli import (
    api,
    backup,
    chaos,
    chat,
    comparing,
    completion,
    deltas,
    doctor,
    estimate,
    exports,
    files,
    jobs,
    local,
    manage,
    sweeps,
    up,
    webhooks,
    workers,
)
from service.cli.commands import Commands, add_json, described, whole
from service.cli.terminal import CommandError, err
from service.client import ClientError
from service.jobs.errors import DomainError
from service.migrating import NoDatabase
from service.settings import refusals

_EPILOG = """\
first steps:
  allo demo                             align a small model on this machine, start to end
  allo up                               start the service and print its URL and key
  allo models add NAME FOLDER           register the model to align
  allo submit train.jsonl --model NAME --watch
  allo download ftjob-… ./aligned

`allo COMMAND --help` shows a command's options and examples.
"""

_DEMO_EPILOG = """\
examples:
  allo demo                             the whole of it: minutes on two cores, without a network
  allo demo --prepare                   the model and the files alone, to try the other commands with

It makes SmolLM2-135M-Instruct, from a wheel, and generated problems of arithmetic in ./allo-demo; starts a service of
its own there, on any free port, and ends it; runs every stage, downloads the aligned model and loads it.
"""

_BENCH_EPILOG = """\
examples:
  allo bench                            every benchmark, in a clone of the project
  allo bench optimizer --json           one of improve, warmup, memory, memory-formula, optimizer, locate,
                                        token-rewards, sample, delta, ranks, trainers, job, transfers,
                                        merged, service, streams, pages, bookkeeping, overhead, due, and where
                                        vLLM is sample-vllm; by name alone: transfers-10gb, recovery, effective,
                                        away

Each figure is a ratio against a rival on the same input; each measurement is a process of its own, and the sides take
turns: those of all figures that share one of them. Leave the machine alone meanwhile. ALLO_BENCH_DATA names a file of
problems to take instead of generated ones.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except (CommandError, ClientError, DomainError, NoDatabase) as error:
        err.print(f"error: {error}", style="red", markup=False)
    except ValidationError as error:
        for refusal in refusals(error):
            err.print(f"error: {refusal}", style="red", markup=False)
    except OSError as error:
        if error.filename is None:  # no file of the user's: what it was, the traceback tells
            raise
        err.print(f"error: {error.strerror}: {error.filename}", style="red", markup=False)
    except KeyboardInterrupt:
        return 130
    return 1


def parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    allo = whole(
        prog="allo",
        description="Align language models: upload data, submit a job, watch it, download the aligned model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = allo.add_subparsers(required=True, metavar="COMMAND")
    up.add(commands)
    _add_demo(commands)
    jobs.add_submit(commands)
    estimate.add(commands)
    jobs.add_watch(commands)
    jobs.add_download(commands)
    sweeps.add(commands)
    comparing.add(commands)
    chat.add(commands)
    exports.add(commands)
    manage.add(commands)
    files.add(commands)
    webhooks.add(commands)
    deltas.add(commands)
    local.add_models(commands)
    local.add_keys(commands)
    workers.add(commands)
    _add_bench(commands)
    doctor.add(commands)
    backup.add(commands)
    chaos.add(commands)
    api.add(commands)
    completion.add(commands, allo)
    return allo


def _add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    demo = described(commands, "demo", "align a real small model on this machine, start to end", _DEMO_EPILOG)
    demo.add_argument("--prepare", action="store_true", help="make the model and the files, and end")
    demo.set_defaults(run=lambda args: _load("demo", "service.demo").run(args))


def _add_bench(commands: Commands[argparse.ArgumentParser]) -> None:
    bench = described(commands, "bench", "measure this machine's speed against named rivals", _BENCH_EPILOG)
    bench.set_defaults(run=lambda args: _load("bench", "tests.benchmarks").run(args))
    bench.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run (all)")
    bench.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements of each side, in turn (5)")
    add_json(bench)


def _load(name: str, module: str) -> ModuleType:
    # The benchmarks stand beside this package, in a clone; another `tests` may be installed.
    sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise CommandError(f"`allo {name}` needs {module}, which this installation does not have.") from None


if __name__ == "__main__":
    sys.exit(main())
