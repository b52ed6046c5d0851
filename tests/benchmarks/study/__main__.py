"""python -m tests.benchmarks.study [screening|full|questions]: starts the study, or goes on with it. See --help."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from service.cli.terminal import CommandError
from service.client import ClientError
from service.demo import allo, prepare_model, serving
from tests.benchmarks.study import small
from tests.benchmarks.study.arms import SCALES, Scale
from tests.benchmarks.study.gates import can_gate
from tests.benchmarks.study.questions import questions
from tests.benchmarks.study.runner import Runner
from tests.benchmarks.study.study import OTHERS, run
from tests.benchmarks.study.task import StudyError


def main(arguments: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    if (args.scale == "questions") != (args.problems is not None):
        parser.error("questions are those of a folder, and no other scale has one: --problems FOLDER")
    if not 0 < args.share <= 1:
        parser.error("--share: a part of the problems, above 0 and at most 1")
    if not can_gate(args.arms):
        parser.error("--arms: A is among them in any case, and a masked arm of one round, for a gate compares the two")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service that it started ends with it
    folder: Path = args.data.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        scale = _scale(args)
        model = folder / scale.model
        (small.make if scale.name == "screening" else prepare_model)(model)
        with serving(folder / "service") as client:
            allo("models", "add", scale.model, str(model), "--data-dir", str(folder / "service"))
            run(Runner(client, scale, folder, _say), folder / "reports", args.arms, anyway=args.anyway)
    except (StudyError, ClientError, CommandError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Done: {folder / 'reports' / scale.name}.md")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _scale(args: argparse.Namespace) -> Scale:
    scale = SCALES[args.scale] if args.scale in SCALES else questions(args.problems.expanduser().absolute())
    sizes = {name: max(1, round(args.share * n)) for name, n in scale.sizes.items()}
    return replace(scale, seeds=scale.seeds if args.seeds is None else args.seeds, sizes=sizes)


def _parser() -> argparse.ArgumentParser:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.study", description=__doc__)
    parser.add_argument("scale", nargs="?", choices=[*SCALES, "questions"], default="screening", help="what is studied")
    parser.add_argument("--data", type=Path, default=cache / "allo-study", help="where everything is kept")
    parser.add_argument("--problems", type=Path, help="the folder of questions: train, validation and test.jsonl")
    parser.add_argument("--share", type=float, default=1.0, help="of each split's problems: less for a first look")
    parser.add_argument("--seeds", type=int, help="runs of each arm; the scale's own number where not given")
    parser.add_argument("--arms", nargs="+", choices=OTHERS, default=OTHERS, help="the arms beside SFT")
    parser.add_argument("--anyway", action="store_true", help="go on where a gate fails; the report says which did")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
