"""`allo files`: what was uploaded."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from allo_engine.pipeline import Format
from service.cli.commands import Commands, command, verbs
from service.cli.connection import connect
from service.cli.terminal import CommandError, listing, shown
from service.datasets.containers import Limits
from service.datasets.validation import validate

_EPILOG = """\
examples:
  allo files                            is `allo files list`
  allo files upload train.jsonl         checks it first, and says its bad lines
  allo files get file-… train.jsonl     the bytes as they were uploaded
  allo files delete file-…              jobs that began with it go on
"""


LONGEST_LINE, MOST_EXPANDED = 2**26, 2**40
"""Generous: what the service takes, it says itself."""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    found = verbs(commands, "files", "list, upload, fetch and delete training files", _EPILOG)
    listing = command(found, "list", "show the files, newest first", "", _list)
    listing.add_argument("--limit", type=int, default=100, metavar="N", help="at most so many (100)")
    upload = command(found, "upload", "upload a training file and check it", "", _upload)
    upload.add_argument("path", type=Path, metavar="FILE")
    get = command(found, "get", "fetch a file's bytes", "", _get)
    get.add_argument("id", metavar="FILE", help="file-…")
    get.add_argument("path", type=Path, metavar="PATH", help="where to put them")
    delete = command(found, "delete", "delete files", "", _delete)
    delete.add_argument("ids", nargs="+", metavar="FILE", help="file-…")


def _list(args: argparse.Namespace) -> int:
    with connect(args) as client:
        found = list(client.get("/v1/files", limit=args.limit)["data"])
    shown(args, found, lambda: _table(found))
    return 0


def _table(files: list[dict[str, Any]]) -> Table | str:
    if not files:
        return "There are no files: `allo files upload FILE` or `allo submit FILE` brings one."
    table = listing("file", "name", "format", "rows", "MiB", "made", "status")
    for file in files:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(file["created_at"]))
        rows, size = file.get("rows"), f"{file['bytes'] / 2**20:.1f}"
        table.add_row(
            file["id"], file["filename"], file.get("format") or "", str(rows or ""), size, made, file["status"]
        )
    return table


def _upload(args: argparse.Namespace) -> int:
    if not args.path.is_file():
        raise CommandError(f"There is no file {args.path}.")
    checked(args.path, most=100)
    with connect(args) as client:
        file = client.upload(args.path)
    shown(args, file, lambda: f"{file['id']}: {file.get('rows')} rows of {file.get('format')}.")
    return 0


def checked(path: Path, most: int = 10) -> Format:
    """What a file holds. Raises CommandError with the first bad lines of one that cannot be trained on."""
    limits = Limits(LONGEST_LINE, MOST_EXPANDED)
    with path.open("rb") as file, Path(os.devnull).open("wb") as nobody:  # the first problems are enough here
        found = validate(iter(lambda: file.read(2**20), b""), nobody, nobody, limits)
    if not found.problem_count and found.format is not None:
        return found.format
    lines = [f"  line {bad.line}: {bad.field or 'it'} {bad.wrong}; it takes {bad.right}." for bad in found.shown[:most]]
    more = [f"  and {found.problem_count - len(lines)} more"] if found.problem_count > len(lines) else []
    raise CommandError("\n".join([f"{path} cannot be trained on.", *lines, *more]))


def _get(args: argparse.Namespace) -> int:
    with connect(args) as client:
        content = client.file_content(args.id)
    args.path.write_bytes(content)
    shown(args, {"path": str(args.path), "bytes": len(content)}, lambda: f"{args.path}: {len(content)} bytes.")
    return 0


def _delete(args: argparse.Namespace) -> int:
    with connect(args) as client:
        for file_id in args.ids:
            gone = client.delete(f"/v1/files/{file_id}")
            shown(args, gone, lambda file_id=file_id: f"{file_id} is deleted.")  # type: ignore[misc]
    return 0
