"""Make one export in a process of its own, and say how far it is from the model:

    python -m allo_engine.exports gguf MODEL OUT --type q8_0
    python -m allo_engine.exports peft MODEL OUT --base BASE --rank 16

OUT is a folder. What is told of the export goes to standard output as one line of JSON; what is wrong, to standard
error, as one line of words. Exit status: 0 done, 1 failed, 2 refused: another try would be too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from allo_engine.forks import leave
from allo_engine.importing import loading
from allo_engine.report import StageError


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        figures = _export(options)
    except StageError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2 if error.code == "refused" else 1
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def _export(options: argparse.Namespace) -> dict[str, object]:
    if options.format == "gguf":
        with loading():  # each brings what the other has no use for
            from allo_engine.exports import gguf_file
        return gguf_file.export(options.model, options.out, options.type)
    with loading():
        from allo_engine.exports import lora
    return lora.export(options.model, options.base, options.out, options.rank)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allo_engine.exports", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    formats = parser.add_subparsers(dest="format", required=True)
    gguf, peft = formats.add_parser("gguf"), formats.add_parser("peft")
    for part in (gguf, peft):
        part.add_argument("model", type=Path)
        part.add_argument("out", type=Path)
    gguf.add_argument("--type", choices=["f16", "q8_0"], default="f16")
    peft.add_argument("--base", type=Path, required=True)
    peft.add_argument("--rank", type=int, default=16)
    return parser


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
