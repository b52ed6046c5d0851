"""Commands that are programs of their own: `allo demo` and `allo bench`."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from service.cli.commands import Commands, add_json, described
from service.cli.terminal import CommandError

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


def add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    demo = described(commands, "demo", "align a real small model on this machine, start to end", _DEMO_EPILOG)
    demo.add_argument("--prepare", action="store_true", help="make the model and the files, and end")
    demo.set_defaults(run=lambda args: _load("demo", "service.demo").run(args))


def add_bench(commands: Commands[argparse.ArgumentParser]) -> None:
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
