"""What a job will take, before anything runs: each stage's tokens, time, memory and disk, with an honest band.

    python -m allo_engine.estimate --config job.json           a table
    python -m allo_engine.estimate --config job.json --json    the same as JSON, in seconds and bytes
    python -m allo_engine.estimate fit MODEL --device-gb 24    which stages fit a device, from config.json alone
    python -m allo_engine.estimate count --config job.json     what is priced, for other machines too (count.py)

job.json names the job as it would be submitted, with folders and files of this machine:

    {"method": "allo",
     "stages": {"sft": {"n_epochs": 1}, "sample": {"n": 4, "max_response_tokens": 256}},
     "hyperparameters": {"batch_size": 16},
     "seed": 0,
     "inputs": {"model": "/models/smollm2",
                "training_file": "train.jsonl",
                "validation_file": "heldout.jsonl",
                "retention_file": "other.jsonl",
                "corrections_file": "corrections.jsonl",
                "rewriter": "/models/smollm2-small"}}

All but "method", "inputs.model" and "inputs.training_file" may be left out; "rewriter" is the folder of the model that
stages.reward_model.model names. Up to 500 lines of each file are tokenised
and packed as the stages would do it; what models will answer is simulated (priors.py), and this machine's speed is
measured once, in some ten seconds (calibration.py; --again measures anew). The band spans other views of what
models answer, and a machine that is a fifth faster or slower than when it was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from allo_engine.forks import leave
from allo_engine.importing import loading

with loading():
    from allo_engine.estimate import count
    from allo_engine.estimate.job import NO_JOB, Job
    from allo_engine.estimate.price import Estimate, StageEstimate
    from allo_engine.estimate.rates import Calibration


def table_of(found: Estimate, machine: str) -> Table:
    table = Table(title=f"On {machine}", title_justify="left", show_footer=True)
    total = found.total()
    columns = ("stage", "tokens", "time", "between", "memory", "disk")
    for name, footer in zip(columns, _cells(total), strict=True):
        table.add_column(name, footer, justify="left" if name == "stage" else "right")
    for stage in found.stages:
        table.add_row(*_cells(stage))
    more = gigabytes(total.work_bytes)
    table.caption = f"Times are h:mm:ss. With checkpoints for resuming, disk reaches {more}."
    return table


def _cells(stage: StageEstimate) -> tuple[str, ...]:
    band = stage.seconds
    return (
        stage.name,
        f"{stage.tokens:,}",
        duration(band.expected),
        f"{duration(band.low)} – {duration(band.high)}",
        gigabytes(stage.peak_memory_bytes),
        gigabytes(stage.disk_bytes),
    )


def duration(taken: float) -> str:
    """Seconds as a clock shows them: 0:42, 5:17, 3:20:00."""
    minutes, rest = divmod(round(taken), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def as_json(found: Estimate, machine: str, rates: Calibration) -> dict[str, Any]:
    return {
        "machine": machine,
        "rates": asdict(rates),
        "stages": [asdict(stage) for stage in found.stages],
        "total": asdict(found.total()),
    }


def main() -> int:
    if sys.argv[1:2] == ["count"]:
        return count.main(sys.argv[2:])
    with loading():
        from allo_engine.estimate import calibration, fit
    if sys.argv[1:2] == ["fit"]:
        return fit.main(sys.argv[2:])
    arguments = _parser().parse_args()
    try:
        job = Job.read(arguments.config)
    except NO_JOB as error:
        print(f"{arguments.config} does not name a job: {error!r}. --help shows one.", file=sys.stderr)  # noqa: T201
        return 2
    rates = calibration.calibrated(again=arguments.again)
    try:
        found = count.estimate(job, rates)
    except count.UNCOUNTED as error:
        print(f"This job cannot be estimated: {error}", file=sys.stderr)  # noqa: T201
        return 1
    machine = calibration.machine()
    if arguments.json:
        print(json.dumps(as_json(found, machine, rates), indent=2))  # noqa: T201
    else:
        Console().print(table_of(found, machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.estimate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the job, as shown above")
    parser.add_argument("--json", action="store_true", help="answer with JSON: seconds and bytes")
    parser.add_argument("--again", action="store_true", help="measure this machine anew")
    return parser


if __name__ == "__main__":
    leave(main())
