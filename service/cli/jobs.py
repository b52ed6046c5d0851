"""`allo submit`, `allo watch` and `allo download`: a job from the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from allo_engine.checks import typed
from allo_engine.pipeline import METHODS, Data, PlanError, did_you_mean, plan
from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.files import checked
from service.cli.results import show_results
from service.cli.sweeps import watched
from service.cli.terminal import CommandError, err, out, shown
from service.cli.watch import EXIT_CODES, status_of, watch_jobs
from service.client import Client
from service.jobs.lifecycle import Priority
from service.jobs.submission import NewJob
from service.jobs.sweeping.points import at, points_of

_SUBMIT_EPILOG = """\
examples:
  allo submit train.jsonl --model smollm2 --watch                                        supervised: sft alone
  allo submit train.jsonl --validation heldout.jsonl --model smollm2 --method allo --stage sft --watch
  allo submit pairs.jsonl --model smollm2 --method dpo --set n_epochs=2
  allo submit train.jsonl --model smollm2 --method allo --masks ftjob-… --set improve.beta=0.2
  allo submit train.jsonl --model llama-8b --method allo --set train=mask --set mask_ratio=0.02
  allo submit pairs.jsonl --model smollm2 --method allo --without forget --set locate.importance=random
  allo submit train.jsonl --model qwen-7b --method allo --set reward_model.model=qwen-0.5b
  allo submit train.jsonl --validation heldout.jsonl --model smollm2 --method allo --watch \\
      --sweep improve.learning_rate=1e-5,5e-5 --sweep seed=0,1,2         six jobs, shared stages computed once, a table

Training files are JSON lines, a JSON array or Parquet, also with gzip or zstd: problems {"problem", "solution",
"answer"?}, preferences {"prompt", "chosen", "rejected"}, chats {"messages"}, or the forms of GSM8K, TRL, Alpaca and
ShareGPT. STAGE.FIELD=VALUE sets one stage; FIELD=VALUE every stage that has the field. The job is checked before
anything is uploaded. A file that was uploaded before is not sent again; its id (file-…) names it, too.
"""
_WATCH_EPILOG = """\
examples:
  allo watch ftjob-…                    bars, curves and events until the job ends; Ctrl-C leaves the job running
  allo watch ftjob-… ftjob-…            several at once, until all have ended

The exit status is the job's, of several the worst: 0 succeeded, 1 failed, 3 cancelled.
"""
_DOWNLOAD_EPILOG = """\
examples:
  allo download ftjob-… ./aligned       then: AutoModelForCausalLM.from_pretrained("./aligned")
  allo download ft:smollm2:… ./model    any model by its name, a checkpoint too

An interrupted download goes on where it stopped; every file is verified by its sha256.
"""


PRIORITIES = tuple(priority.word for priority in Priority)


def add_submit(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "submit", "upload training data and start a job", _SUBMIT_EPILOG, _submit)
    add_job(parser)
    parser.add_argument("--watch", action="store_true", help="stay and show the job's progress")


def add_job(parser: argparse.ArgumentParser) -> None:
    """What names a job, for `asked`."""
    parser.add_argument("training", metavar="TRAIN", help="training file, JSON lines")
    parser.add_argument("--validation", metavar="FILE", help="held-out file of the same format; adds stage evaluate")
    parser.add_argument("--corrections", metavar="FILE", help="corrected responses for the reward model")
    parser.add_argument("--retention", metavar="FILE", help="held-out file about something else: what the model lost")
    parser.add_argument("--masks", metavar="JOB", help="train in the masks of this earlier job; locate none anew")
    parser.add_argument("--model", required=True, help="the model to align, as `allo models list` names it")
    parser.add_argument("--method", choices=METHODS, default="supervised", help="what to run (supervised: sft alone)")
    parser.add_argument("--stage", action="append", default=[], metavar="NAME", help="ask for an optional stage (sft)")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out a stage (forget)")
    parser.add_argument("--set", action="append", default=[], metavar="[STAGE.]FIELD=VALUE", help="change a setting")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=VALUE,…",
        help="a job for each value of a setting, or of seed",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (0)")
    parser.add_argument("--max-seconds", type=int, metavar="N", help="end it once its stages have run for so long")
    parser.add_argument("--priority", choices=PRIORITIES, help="before or behind other jobs that wait (normal)")
    parser.add_argument("--suffix", help="a part of the aligned model's name")


def add_watch(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "watch", "show jobs' progress until they end", _WATCH_EPILOG, _watch)
    parser.add_argument("jobs", nargs="+", metavar="JOB", help="ftjob-…")


def add_download(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "download", "download the aligned model", _DOWNLOAD_EPILOG, _download)
    parser.add_argument("job", metavar="JOB", help="ftjob-…, or the name of a model")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put it")


def _submit(args: argparse.Namespace) -> int:
    with connect(args) as client:
        if args.sweep:
            sweep = client.submit_sweep(asked(args, client))
            shown(args, sweep, lambda: str(sweep["id"]))
            return watched(args, client, sweep["id"]) if args.watch else 0
        job = client.submit(asked(args, client))
        shown(args, job, lambda: str(job["id"]))
        for message in dict.fromkeys(stage["missing"] for stage in job["stages"] if stage["missing"]):
            err.print(f"{message} The job waits for it.", style="yellow", markup=False)
        return _watched(args, client, [job["id"]]) if args.watch else 0


def _watch(args: argparse.Namespace) -> int:
    with connect(args) as client:
        return _watched(args, client, list(dict.fromkeys(args.jobs)))


def _watched(args: argparse.Namespace, client: Client, job_ids: Sequence[str]) -> int:
    jobs = watch_jobs(client, job_ids, err if args.json else out)
    for job in jobs:
        if args.json:
            shown(args, job, str)
        else:
            show_results(client, job)
    return EXIT_CODES[status_of(jobs)]


def _download(args: argparse.Namespace) -> int:
    with connect(args) as client:
        name = model_name(client, args.job)
        download_model(client, name, args.folder)
    done = {"model": name, "folder": str(args.folder)}
    shown(args, done, lambda: f"{args.folder} holds the model; every file was verified.")
    return 0


def download_model(client: Client, name: str, folder: Path) -> None:
    """Every file of a model, with a bar."""
    files = client.model_files(name)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=err) as progress:
        bar = progress.add_task(name, total=sum(file["bytes"] for file in files))
        for file in files:
            client.download(file, folder, lambda count: progress.advance(bar, count))


def model_name(client: Client, job_or_model: str) -> str:
    if not job_or_model.startswith("ftjob-"):
        return job_or_model
    job = client.job(job_or_model)
    if not job["fine_tuned_model"]:
        raise CommandError(f"The job is {job['status']}: it has no model to download yet. `allo watch {job['id']}`")
    return str(job["fine_tuned_model"])


FILES = {f"{name}_file": name for name in ("training", "validation", "corrections", "retention")}
"""The job's fields that name files, by the arguments that give them."""


def asked(args: argparse.Namespace, client: Client) -> dict[str, Any]:
    """The request for a job: checked as far as can be, and then its files uploaded."""
    body = _body(args)
    _check(args, client, body)
    return body | _files(args, client)


def _body(args: argparse.Namespace) -> dict[str, Any]:
    """The request without its files."""
    hyperparameters, stages = parse_settings(args.stage, args.set, args.without)
    settings = {"hyperparameters": hyperparameters, "stages": stages}
    body = {"model": args.model, "seed": args.seed, "method": {"type": args.method, args.method: settings}}
    optional = {"suffix": args.suffix, "masks": args.masks, "sweep": parse_sweep(args.sweep)}
    optional |= {"priority": args.priority, "max_seconds": args.max_seconds}
    return body | {key: value for key, value in optional.items() if value}


def _check(args: argparse.Namespace, client: Client, body: Mapping[str, Any]) -> None:
    """Finds what is wrong with a job before anything is uploaded; the service has the last word."""
    names = [model["id"] for model in client.models()]
    if args.model not in names:
        known = ", ".join(name for name in names if not name.startswith("ft:")) or "none: `allo models add` makes one"
        raise CommandError(f"There is no model {args.model!r}.{did_you_mean(args.model, names)} There are: {known}.")
    paths = {field: Path(value) for field, name in FILES.items() if (value := getattr(args, name)) and _is_local(value)}
    formats = {field: checked(path) for field, path in paths.items()}
    if formats.keys() != {field for field, name in FILES.items() if getattr(args, name)}:
        return  # some are there already: what they hold, the service knows
    data = Data(
        formats["training_file"],
        validation=formats.get("validation_file"),
        corrections="corrections_file" in formats,
        masks=bool(args.masks),
        retention=formats.get("retention_file"),
    )
    settings = body["method"][args.method]
    new = NewJob(args.model, args.training, method=args.method, seed=args.seed, **settings)
    try:
        for point in points_of(body.get("sweep", {})):
            job = at(new, point)
            plan(job.method, data, job.stages, job.hyperparameters, job.seed)
    except PlanError as error:
        raise CommandError(f"{error.message} [{error.param}]") from None


def _files(args: argparse.Namespace, client: Client) -> dict[str, str]:
    """Uploads what is a file on this machine, unless its content is there already; the ids of all."""
    given = {field: getattr(args, name) for field, name in FILES.items()}
    return {
        field: client.bring(Path(value))["id"] if _is_local(value) else value for field, value in given.items() if value
    }


def _is_local(name: str) -> bool:
    """Whether this is a file here, not the id of one that was uploaded. Raises CommandError where it is neither."""
    if name.startswith("file-") and not Path(name).exists():
        return False
    if not Path(name).is_file():
        raise CommandError(f"There is no file {name}.")
    return True


def parse_settings(
    stages: list[str], settings: list[str], without: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, dict[str, Any] | None]]:
    """`--stage sft --without forget --set improve.beta=0.2 --set n_epochs=2` → ({n_epochs: 2}, {sft: {}, forget: None,
    improve: {beta: 0.2}})."""
    everywhere: dict[str, Any] = {}
    single: dict[str, dict[str, Any]] = {name: {} for name in stages}
    for setting in settings:
        name, found, text = setting.partition("=")
        stage, dot, field = name.strip().rpartition(".")
        if not found or not field or (dot and not stage):
            raise CommandError(f"--set {setting}: write STAGE.FIELD=VALUE or FIELD=VALUE.")
        (single.setdefault(stage, {}) if stage else everywhere)[field] = typed(text)
    for name in without:
        if name in single:
            raise CommandError(f"--without {name}: it is asked for, too.")
    return everywhere, {**single, **dict.fromkeys(without)}


def parse_sweep(swept: Sequence[str]) -> dict[str, list[Any]]:
    """`--sweep improve.beta=0.1,0.2 --sweep seed=0,1` → {improve.beta: [0.1, 0.2], seed: [0, 1]}."""
    found: dict[str, list[Any]] = {}
    for setting in swept:
        name, _, text = setting.partition("=")
        if not text or not name.strip() or name.strip() in found:
            raise CommandError(f"--sweep {setting}: write NAME=VALUE,VALUE,…, each NAME once.")
        values = typed(f"[{text}]")  # [1, 2],[3, 4] are two lists
        found[name.strip()] = values if isinstance(values, list) else [typed(part) for part in text.split(",")]
    return found
