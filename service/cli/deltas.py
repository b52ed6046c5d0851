"""`allo merge` and `allo info`: sparse checkpoints in the user's own folders."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from service.cli.commands import Commands, add_json, described
from service.cli.terminal import CommandError, shown

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
    add_json(merge)
    merge.set_defaults(run=_merge)
    info = described(commands, "info", "say what a sparse checkpoint holds", _INFO_EPILOG)
    info.add_argument("delta", metavar="DELTA", help="the folder that holds delta.safetensors")
    add_json(info)
    info.set_defaults(run=_info)


def _merge(args: argparse.Namespace) -> None:
    _engine("merge", args.base, args.delta, args.out, args.dtype)
    shown(args, {"folder": args.out}, lambda: f"wrote {args.out}")


def _info(args: argparse.Namespace) -> None:
    found = json.loads(_engine("info", args.delta))
    shown(args, found, lambda: _told(found))


def _told(found: dict[str, Any]) -> str:
    size, entries = found["bytes"], found["entries"]
    lines = found | {"bytes": f"{size} ({size / max(entries, 1):.2f} an entry)"}
    return "\n".join(f"{name:8} {value}" for name, value in lines.items())


def _engine(*command: str) -> str:
    # In a process of its own: the service knows nothing of the engine's checkpoints.
    done = subprocess.run([sys.executable, "-m", "allo_engine.checkpoints", *command], capture_output=True, text=True)
    if done.returncode:
        raise CommandError(done.stderr.strip() or f"The engine ended with status {done.returncode}.")
    return done.stdout
