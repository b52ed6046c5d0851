"""`allo export`: a model in the form that another program reads."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from urllib.parse import quote

from service.cli.commands import Commands, command
from service.cli.connection import connect
from service.cli.jobs import model_name
from service.cli.terminal import CommandError, out, shown

OPTIONS = {"gguf": "type", "peft": "rank", "safetensors": "dtype", "delta": None}
"""The formats, and the option that each has."""

_EPILOG = """\
examples:
  allo export ftjob-… gguf model.gguf --type q8_0          for llama.cpp and Ollama
  allo export ftjob-… peft adapter.tar --rank 16           what alignment changed, approximately, for PEFT
  allo export ftjob-… safetensors model.tar --dtype bfloat16
  allo export ftjob-… delta delta.safetensors              what training changed; `allo merge` merges it

GGUF and adapters are made once, which takes its time; how far their logits are from the model's is told at the end.
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = command(commands, "export", "download a model in another form", _EPILOG, _export)
    parser.add_argument("job", metavar="JOB", help="ftjob-…, or the name of a model")
    parser.add_argument("format", choices=list(OPTIONS), help="the form")
    parser.add_argument("file", type=Path, metavar="FILE", help="where to put it")
    parser.add_argument("--type", choices=["f16", "q8_0"], help="numbers of a GGUF (f16)")
    parser.add_argument("--rank", type=int, metavar="R", help="rank of an adapter (16)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of safetensors (as stored)")


def _export(args: argparse.Namespace) -> int:
    params = _params(args)
    with connect(args) as client:
        name = model_name(client, args.job)
        with out.status(f"Waiting for {args.format} …"):
            while not client.export(name, args.format, params, args.file):
                time.sleep(1)
        made = client.get(f"/v1/models/{quote(name, safe='')}")["exports"]
    figures = next((row["figures"] for row in reversed(made) if row["format"] == args.format), None)
    done = {"model": name, "format": args.format, "file": str(args.file), "figures": figures}
    logits = (figures or {}).get("logits")
    off = f" Its logits are at most {logits['max_abs']:.3g} off, {logits['mean_abs']:.3g} on average." if logits else ""
    shown(args, done, lambda: f"{args.file} holds the model.{off}")
    return 0


def _params(args: argparse.Namespace) -> dict[str, str | int]:
    given = {name: getattr(args, name) for name in ("type", "rank", "dtype") if getattr(args, name) is not None}
    for name in given:
        if name != OPTIONS[args.format]:
            raise CommandError(f"--{name} is no option of {args.format}.")
    return given
