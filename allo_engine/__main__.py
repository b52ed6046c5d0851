"""Run one stage, without any service: python -m allo_engine STAGE --config stage.json

stage.json names the stage's settings and its folders:

    {"stage": "sft",
     "config": {"learning_rate": 5e-5, "n_epochs": 1},
     "inputs": {"model": "/models/smollm2", "examples": "/data/train"},
     "outputs": "/results/sft",
     "work": "/results/sft.work"}

Every input is a folder; an uploaded file is a folder that holds data.jsonl. An input "cache" may be added: there stages
leave log-probabilities for one another. With "code", the stage's code (see source.py), it runs only if that is what it
has. Each output becomes a folder under `outputs`. `work` keeps what a later run
needs to go on where this one was stopped. Progress goes to standard output, one JSON object a line. Exit status: 0
done, 75 stopped on SIGTERM and resumable, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin starve a machine that is shared
# before torch: rows of all lengths share the device's memory without cutting it up (torch's older name still counts)
os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import argparse
import contextlib
import faulthandler
import importlib
import json
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

import allo_engine.stages
from allo_engine.configs import config_of
from allo_engine.forks import forked_well, leave
from allo_engine.full import disk_is_full
from allo_engine.held import peak_bytes
from allo_engine.importing import loading
from allo_engine.launching import Place, launched
from allo_engine.ranks import here
from allo_engine.report import Report, StageError, Stopped
from allo_engine.source import stage_code

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def main(arguments: Sequence[str]) -> int:
    """Run the stage that the command line names; the exit status."""
    options = _parser().parse_args(arguments)
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    report = Report(stream)
    faulthandler.register(signal.SIGUSR1, file=2)  # whoever wonders why it is silent learns where it stands
    signal.signal(signal.SIGTERM, lambda *_: setattr(report, "stop_requested", True))
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints must not stand among the report's lines
        return _run(options, report, partial(_become, arguments, stream))


def _become(arguments: Sequence[str], stream: TextIO, place: Place, alone: bool) -> int:
    """Run, in this fork of the first rank, another one of its stage; the exit status. Where the first was not `alone`,
    or torch cannot reach a device, it becomes a program of its own."""
    command = [*arguments, *place.options()]
    if not (alone and forked_well()):
        os.execv(sys.executable, [sys.executable, "-m", "allo_engine", *command])  # noqa: S606 - our own argv
    stream.close()  # the first one's
    sys.stdout = sys.__stdout__
    return main(command)


def preload() -> None:
    """Import what any stage may need, for a process that stages are forked from: nothing here may start a thread or
    touch a device."""
    with loading():
        for stage in _stages():
            stage_code(stage)  # of what is loaded here, whatever lies there once a stage is forked
            importlib.import_module(f"allo_engine.stages.{stage}")


def _run(options: argparse.Namespace, report: Report, become: Callable[[Place, bool], int]) -> int:
    stage, path = options.stage, Path(options.config).resolve()
    place = Place(options.rank, options.size, options.meeting, options.parent) if options.rank else None
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
        config = config_of(stage).model_validate(task.get("config", {}))
        inputs = {name: Path(folder) for name, folder in task["inputs"].items()}
        outputs, work = Path(task["outputs"]), Path(task["work"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        report.error("bad_config", f"{path} is no settings file of stage {stage}: {error}")
        return 2
    if task.get("code", stage_code(stage)) != stage_code(stage):  # its result would bear the name of other code
        report.error("other_code", "The engine was replaced beside its running worker: start the worker again.")
        return 1
    if place:  # what another rank writes, it writes aside
        work = work / "ranks" / str(place.rank)
        outputs = work / "outputs"
    ranks = partial(launched, config, place, become, work, report)
    return _guarded(stage, (config, inputs, outputs, work, report), ranks, report)


def _guarded(
    stage: str, arguments: tuple[Any, ...], ranks: Callable[[], AbstractContextManager[None]], report: Report
) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a stage reads its input folders and nothing else
    os.environ.setdefault("TQDM_DISABLE", "1")  # its progress goes to the report
    with loading():
        module = importlib.import_module(f"allo_engine.stages.{stage}")
        from allo_engine.model.rows import is_out_of_memory  # here, as torch comes with it
    try:
        with ranks():
            figures = module.run(*arguments)
            peak = max(here().gathered(max(peak_bytes(), report.peak_bytes)))
        report.result(figures | {"peak_memory_bytes": peak})
    except Stopped:
        return STOPPED
    except StageError as error:
        report.error(error.code, error.message)
        return 1
    except Exception as error:
        traceback.print_exc()
        if _is_full(error):
            report.error("disk_full", "The disk has no room for what this stage writes.")
        elif is_out_of_memory(error):
            report.error(
                "out_of_memory",
                "The device's memory is full even with one sequence at a time: take a smaller model, lower "
                "max_prompt_tokens and max_response_tokens, or free memory on this machine.",
            )
        return 1
    return 0


def _is_full(error: BaseException | None) -> bool:
    """Whether it, or what it came of, is a full disk; a library that is no Python says so in its words alone."""
    while error is not None:
        if disk_is_full(error) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _stages() -> list[str]:
    """As their modules lie there: a list here would be code of every stage."""
    return [module.name for module in pkgutil.iter_modules(allo_engine.stages.__path__)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=_stages(), metavar="STAGE", help=", ".join(_stages()))
    parser.add_argument("--config", required=True, metavar="FILE", help="the stage's settings, as shown above")
    for option, kind in (("--rank", int), ("--size", int), ("--meeting", Path), ("--parent", int)):  # see launching.py
        parser.add_argument(option, type=kind, default=0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
