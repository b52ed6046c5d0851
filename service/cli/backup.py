"""`allo backup` and `allo restore`: the whole service in a folder, made while it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from service.backup.dumps import DumpError
from service.backup.restoring import restore
from service.backup.saving import made, save
from service.cli.commands import Commands, add_json, described
from service.cli.connection import add_data_dir, local_settings
from service.cli.terminal import CommandError, err, shown
from service.cli.up import sole_owner
from service.jobs.data.erasing import keeping_of
from service.storage import open_store

_BACKUP_EPILOG = """\
examples:
  allo backup /mnt/backup               now, while the service runs; again tomorrow: what has changed is copied
  allo backup /mnt/backup --keep 30     the newest 30 stay
  allo backup /mnt/backup --list

The folder holds all that the service holds, hashes of keys among it: keep it as you keep the service. /docs/backup has
more.
"""
_RESTORE_EPILOG = """\
examples:
  allo restore /mnt/backup --data-dir /srv/allo
  allo restore /mnt/backup --name 000012-2026-11-27T030000Z
  ALLO_DATABASE_URL=postgresql://… ALLO_STORE_URL=s3://… allo restore /mnt/backup

It takes a data folder without a database, or an empty database. Then start the service: queued jobs run, and running
ones go on from the checkpoints that were kept.
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    backup = described(commands, "backup", "copy the whole service to a folder while it runs", _BACKUP_EPILOG)
    backup.add_argument("folder", type=Path, metavar="FOLDER", help="where backups lie; made where it is missing")
    backup.add_argument("--keep", type=int, default=7, metavar="N", help="the newest so many stay (7)")
    backup.add_argument("--list", action="store_true", help="show those that there are, and make none")
    back = described(commands, "restore", "bring a service back from its backup", _RESTORE_EPILOG)
    back.add_argument("folder", type=Path, metavar="FOLDER", help="the folder that `allo backup` wrote to")
    back.add_argument("--name", help="which backup, as `allo backup FOLDER --list` shows it (the newest)")
    back.add_argument("--anyway", action="store_true", help="though some of its contents are damaged or missing")
    for parser, run in ((backup, _backup), (back, _restore)):
        add_data_dir(parser)
        add_json(parser)
        parser.set_defaults(run=run)


def _backup(args: argparse.Namespace) -> int:
    """The status is 1 where the store lacks contents that rows name: then they are in no backup, either."""
    if args.keep < 1:
        raise CommandError(f"--keep {args.keep}: at least one backup stays, the one that is made.")
    if args.list:
        found = made(args.folder)
        lines = [f"{name}  {one.database}  {one.contents} contents" for name, one in found.items()]
        shown(args, {name: asdict(one) for name, one in found.items()}, lambda: "\n".join(lines) or "There is none.")
        return 0
    settings = local_settings(args)
    with _told(args) as told, _clear():
        store = open_store(settings.store, settings.s3)
        saved = save(settings.database, store, keeping_of(settings), args.folder, args.keep, told)
    copied = f"{saved.copied} contents copied, {saved.bytes / 2**20:.1f} MiB"
    said = f"{saved.name}: {saved.manifest.contents} contents, {copied}; {saved.pruned} of older backups removed."
    shown(args, asdict(saved), lambda: said)
    if saved.manifest.lacking:
        lacking = f"{len(saved.manifest.lacking)} contents are damaged or missing in the store, and in the backup"
        err.print(f"{lacking}: `allo doctor --verify` names them.", style="red", markup=False)
    return int(bool(saved.manifest.lacking))


def _restore(args: argparse.Namespace) -> int:
    settings = local_settings(args)
    settings.open_data_dir()
    with sole_owner(settings.data_dir), _told(args) as told, _clear():
        store = open_store(settings.store, settings.s3)
        back = restore(args.folder, args.name, settings.database, store, args.anyway, told)
    done = f"{back.contents - len(back.lacking)} contents are whole, {back.copied} of them copied"
    shown(args, asdict(back), lambda: f"{back.name} is restored: {done}. {back.jobs} unfinished jobs go on.")
    return 0


@contextmanager
def _clear() -> Iterator[None]:
    """What goes wrong, as a person reads it."""
    try:
        yield
    except (DumpError, OSError) as error:
        raise CommandError(str(error)) from error


@contextmanager
def _told(args: argparse.Namespace) -> Iterator[Callable[[int, int], Any]]:
    columns = ("copying", BarColumn(), MofNCompleteColumn(), "contents", TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=args.json) as progress:
        task = progress.add_task("copying", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
