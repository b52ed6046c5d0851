"""`allo submit`, `allo watch` and `allo download`: a job from the terminal."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from allo_engine.pipeline import METHODS
from service.cli.connection import add_connection, connect
from service.cli.terminal import CommandError, err, out
from service.cli.watch import EXIT_CODES, watch_job
from service.client import Client

_SUBMIT_EPILOG = """\
examples:
  allo submit train.jsonl --model smollm2 --watch
  allo submit train.jsonl --validation heldout.jsonl --model smollm2 --stage sft --set improve.learning_rate=1e-5
  allo submit pairs.jsonl --model smollm2 --method dpo --set n_epochs=2
  allo submit train.jsonl --model smollm2 --masks ftjob-… --set improve.beta=0.2
  allo submit train.jsonl --model llama-8b --set train=mask --set mask_ratio=0.02        no stage over all weights
  allo submit train.jsonl --model qwen-7b --set reward_model.model=qwen-0.5b

Training files are JSON lines: problems {"problem", "solution", "answer"?} or preferences {"prompt", "chosen",
"rejected"}. STAGE.FIELD=VALUE sets one stage; FIELD=VALUE every stage that has the field. A file that was uploaded
before may be named by its id (file-…).
"""
_WATCH_EPILOG = """\
examples:
  allo watch ftjob-…                    bars and events until the job ends; Ctrl-C leaves the job running

The exit status is the job's: 0 succeeded, 1 failed, 3 cancelled.
"""
_DOWNLOAD_EPILOG = """\
examples:
  allo download ftjob-… ./aligned       then: AutoModelForCausalLM.from_pretrained("./aligned")
  allo download ft:smollm2:… ./model    any model by its name, a checkpoint too

An interrupted download goes on where it stopped; every file is verified by its sha256.
"""


def add_submit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "submit", "upload training data and start a job", _SUBMIT_EPILOG)
    parser.add_argument("training", metavar="TRAIN", help="training file, JSON lines")
    parser.add_argument("--validation", metavar="FILE", help="held-out file of the same format; adds stage evaluate")
    parser.add_argument("--corrections", metavar="FILE", help="corrected responses for the reward model")
    parser.add_argument("--masks", metavar="JOB", help="train in the masks of this earlier job; locate none anew")
    parser.add_argument("--model", required=True, help="the model to align, as `allo models list` names it")
    parser.add_argument("--method", choices=METHODS, default="allo", help="what to run (allo)")
    parser.add_argument("--stage", action="append", default=[], metavar="NAME", help="ask for an optional stage (sft)")
    parser.add_argument("--set", action="append", default=[], metavar="[STAGE.]FIELD=VALUE", help="change a setting")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (0)")
    parser.add_argument("--suffix", help="a part of the aligned model's name")
    parser.add_argument("--watch", action="store_true", help="stay and show the job's progress")
    parser.set_defaults(run=_submit)


def add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "watch", "show a job's progress until it ends", _WATCH_EPILOG)
    parser.add_argument("job", metavar="JOB", help="ftjob-…")
    parser.set_defaults(run=_watch)


def add_download(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "download", "download the aligned model", _DOWNLOAD_EPILOG)
    parser.add_argument("job", metavar="JOB", help="ftjob-…, or the name of a model")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to put it")
    parser.set_defaults(run=_download)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, epilog: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_connection(parser)
    return parser


def _submit(args: argparse.Namespace) -> int:
    with connect(args) as client:
        job = client.submit(_job(args, client))
        out.print(job["id"])
        for message in dict.fromkeys(stage["missing"] for stage in job["stages"] if stage["missing"]):
            err.print(f"{message} The job waits for it.", style="yellow", markup=False)
        return EXIT_CODES[watch_job(client, job["id"])["status"]] if args.watch else 0


def _watch(args: argparse.Namespace) -> int:
    with connect(args) as client:
        return EXIT_CODES[watch_job(client, args.job)["status"]]


def _download(args: argparse.Namespace) -> int:
    with connect(args) as client:
        download_model(client, _model_name(client, args.job), args.folder)
    out.print(f"{args.folder} holds the model; every file was verified.")
    return 0


def download_model(client: Client, name: str, folder: Path) -> None:
    """Every file of a model, with a bar."""
    files = client.model_files(name)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=out) as progress:
        bar = progress.add_task(name, total=sum(file["bytes"] for file in files))
        for file in files:
            client.download(file, folder, lambda count: progress.advance(bar, count))


def _model_name(client: Client, job_or_model: str) -> str:
    if not job_or_model.startswith("ftjob-"):
        return job_or_model
    job = client.job(job_or_model)
    if not job["fine_tuned_model"]:
        raise CommandError(f"The job is {job['status']}: it has no model to download yet. `allo watch {job['id']}`")
    return str(job["fine_tuned_model"])


def _job(args: argparse.Namespace, client: Client) -> dict[str, Any]:
    """The request's body; uploads what is a file on this machine."""
    hyperparameters, stages = parse_settings(args.stage, args.set)
    named = {"training_file": args.training, "validation_file": args.validation, "corrections_file": args.corrections}
    body: dict[str, Any] = {key: _file_id(client, value) for key, value in named.items() if value}
    settings = {"hyperparameters": hyperparameters, "stages": stages}
    body |= {"model": args.model, "seed": args.seed, "method": {"type": args.method, args.method: settings}}
    optional = {"suffix": args.suffix, "masks": args.masks}
    return body | {key: value for key, value in optional.items() if value}


def parse_settings(stages: list[str], settings: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """`--stage sft --set improve.beta=0.2 --set n_epochs=2` → ({n_epochs: 2}, {sft: {}, improve: {beta: 0.2}})."""
    everywhere: dict[str, Any] = {}
    single: dict[str, dict[str, Any]] = {name: {} for name in stages}
    for setting in settings:
        name, found, text = setting.partition("=")
        stage, dot, field = name.strip().rpartition(".")
        if not found or not field or (dot and not stage):
            raise CommandError(f"--set {setting}: write STAGE.FIELD=VALUE or FIELD=VALUE.")
        (single.setdefault(stage, {}) if stage else everywhere)[field] = _value(text)
    return everywhere, single


def _value(text: str) -> Any:
    """JSON where it is some (1e-5, true, [1]), and otherwise the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _file_id(client: Client, name: str) -> str:
    path = Path(name)
    if name.startswith("file-") and not path.exists():
        return name
    if not path.is_file():
        raise CommandError(f"There is no file {name}.")
    return str(client.upload(path)["id"])
