"""Counts what a job will compute, without computing it: the part of an estimate that needs a tokenizer and the stages'
own code, and so a process of its own.

    python -m allo_engine.estimate count --config job.json     one line: {"works": [{place, model, rewriter, views}]}

job.json is that of `python -m allo_engine.estimate`, and may name besides

    "shapes": {"model": {"weights": 134515008, …}, "rewriter": {…}}
    "packs": {"model": true, "rewriter": true}
    "places": [{"device": "cuda", "free_bytes": 25000000000, "bfloat16": true, "vllm": false}, …]

Of a model whose shape is named, as its probe wrote it (model/probe.py), the folder needs no weights: config.json and
the tokenizer's files suffice; and where its verdict is named, it is not tried again whether its rows hold several
sequences. The job is counted for every one of `places`, the kinds of workers that could run it (loads.py), with each
text read, tokenised and simulated once; without any, for this machine as it is now. What is printed, `Work.read` reads
and `price` (price.py) prices. Exit status: 0; 3 where the job could not run, 2 where job.json names none, with the
reason on the last line of standard error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from allo_engine.estimate.excerpt import Excerpt, excerpt_of
from allo_engine.estimate.job import NO_JOB, Job
from allo_engine.estimate.loads import Place, Work
from allo_engine.estimate.price import Estimate, price
from allo_engine.estimate.priors import EXPECTED, FEWER, MORE
from allo_engine.estimate.rates import Calibration
from allo_engine.estimate.simulated import Simulated
from allo_engine.estimate.workload import Sized, Workload
from allo_engine.model.loading import device
from allo_engine.model.memory import available_bytes
from allo_engine.orphans import die_with
from allo_engine.pipeline import Data, PlanError, plan
from allo_engine.report import StageError

NO_JOB_STATUS, UNCOUNTED_STATUS = 2, 3
"""What 1 is not: that is Python's own, of an error that nobody foresaw."""

UNCOUNTED = (PlanError, StageError, OSError, ValueError, KeyError)
"""What `count` raises."""


def estimate(job: Job, rates: Calibration) -> Estimate:
    """What a job will take on this machine, if its rates are these. Raises UNCOUNTED, as `count` does."""
    (work,) = count(job, [here()])
    return price(work, rates)


def here() -> Place:
    """This machine as a place to run at, with what is free of it now."""
    kind = device().type
    narrow = kind == "cuda" and torch.cuda.is_bf16_supported()
    return Place(kind, available_bytes(kind), narrow, importlib.util.find_spec("vllm") is not None)


def count(job: Job, places: Sequence[Place]) -> list[Work]:
    """What a job will compute at each of these places.

    Raises PlanError or StageError where the job could not run, OSError or ValueError where a file cannot be read,
    KeyError where a model's size is not named.
    """
    model = _sized(job, "model", job.model)
    rewriter = _sized(job, "rewriter", job.rewriter) if job.rewriter else model
    with tempfile.TemporaryDirectory() as root:
        excerpts = {name: excerpt_of(path, Path(root) / name, job.seed) for name, path in job.files.items()}
        stages = plan(job.method, _data(job, excerpts), job.stages, job.hyperparameters, job.seed)
        views = [Simulated(stages, job.model, excerpts, priors, job.seed) for priors in (EXPECTED, FEWER, MORE)]
        loads = [[Workload(view, place, model, rewriter).loads() for view in views] for place in places]
    return [
        Work(place, model.shape, rewriter.shape, tuple(zip(*found, strict=True)))
        for place, found in zip(places, loads, strict=True)
    ]


def _sized(job: Job, name: str, folder: Path) -> Sized:
    return Sized(folder, job.shape(name, folder), job.packs.get(name))


def _data(job: Job, files: Mapping[str, Excerpt]) -> Data:
    validation, retention = files.get("validation_file"), files.get("retention_file")
    return Data(
        files["training_file"].format,
        validation=validation.format if validation else None,
        corrections="corrections_file" in files,
        masks=job.masks,
        retention=retention.format if retention else None,
    )


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.parent:
        die_with(options.parent)
    path = options.config
    try:
        job = Job.read(path)
    except NO_JOB as error:
        print(f"{path} does not name a job: {error!r}", file=sys.stderr)  # noqa: T201
        return NO_JOB_STATUS
    try:
        works = count(job, job.places or [here()])
    except UNCOUNTED as error:
        print(f"This job cannot be estimated: {error}", file=sys.stderr)  # noqa: T201
        return UNCOUNTED_STATUS
    print(json.dumps({"works": [work.write() for work in works]}))  # noqa: T201 - this is the command's answer
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.estimate count",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the job, as shown above")
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)  # whoever asked, and ends with it
    return parser
