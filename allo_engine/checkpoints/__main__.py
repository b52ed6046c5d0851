"""What `allo merge` and `allo info` run in a process of their own: `merge BASE DELTA OUT DTYPE`, `info DELTA`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from allo_engine.checkpoints.delta import Delta
from allo_engine.checkpoints.delta import merge as merge_into
from allo_engine.forks import leave
from allo_engine.report import StageError


def main(argv: list[str]) -> int:
    """The exit status; what is wrong goes to standard error in one line."""
    try:
        _run(*argv)
    except StageError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename or 'A file'}: {error.strerror or error}\n")
        return 1
    return 0


def _run(command: str, *arguments: str) -> None:
    if command == "merge":
        merge(*arguments)
    else:
        info(*arguments)


def merge(base: str, delta: str, out: str, dtype: str) -> None:
    folder = Path(base)
    if not any(folder.glob("*.safetensors")):
        raise StageError("bad_model", f"{base} holds no *.safetensors: name the folder of the model that was aligned.")
    merge_into(folder, Path(delta), Path(out), getattr(torch, dtype))


def info(folder: str) -> None:
    delta = Delta(Path(folder))
    counted = {"weights": len(delta.counts), "entries": sum(delta.counts.values())}
    sys.stdout.write(json.dumps(counted | {"bytes": delta.path.stat().st_size, "base": delta.base}) + "\n")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
