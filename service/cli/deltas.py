"""`allo merge` and `allo info`: sparse checkpoints in the user's own folders."""

from __future__ import annotations

import argparse
import subprocess
import sys

from service.cli.commands import Commands, described
from service.cli.terminal import CommandError, out

_MERGE_EPILOG = """\
examples:
  allo merge ./SmolLM2-135M ./delta ./aligned
  allo merge ./SmolLM2-135M ./delta ./aligned --dtype bfloat16

BASE is the model that the delta was trained from: the registered one, or the job's sft checkpoint where it has that
stage. OUT is a folder that plain transformers loads: AutoModelForCausalLM.from_pretrained("./aligned").
"""
_INFO_EPILOG = """\
examples:
  allo info ./delta                     how many weights and entries it holds, and its base's fingerprint
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    merge = described(
        commands,
        "merge",
        "write a whole model: a base and its sparse checkpoint in one folder",
        _MERGE_EPILOG,
        "Write a whole model: the base's weights with the values of a sparse checkpoint.",
    )
    merge.add_argument("base", metavar="BASE", help="the folder of the model that the delta was trained from")
    merge.add_argument("delta", metavar="DELTA", help="the folder that holds delta.safetensors")
    merge.add_argument("out", metavar="OUT", help="the folder to write; new or empty")
    merge.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="what to write the weights in; float32 (the default) keeps every bit that training left",
    )
    merge.set_defaults(run=lambda args: _engine("merge", args.base, args.delta, args.out, args.dtype))
    info = described(commands, "info", "say what a sparse checkpoint holds", _INFO_EPILOG)
    info.add_argument("delta", metavar="DELTA", help="the folder that holds delta.safetensors")
    info.set_defaults(run=lambda args: _engine("info", args.delta))


def _engine(*command: str) -> None:
    # In a process of its own: the service knows nothing of the engine's checkpoints.
    done = subprocess.run([sys.executable, "-m", "allo_engine.checkpoints", *command], capture_output=True, text=True)
    if done.returncode:
        raise CommandError(done.stderr.strip() or f"The engine ended with status {done.returncode}.")
    out.print(done.stdout.rstrip(), markup=False)
