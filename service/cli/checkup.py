"""`allo doctor --verify` and `--mend`: all that is stored, read to its end."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from service.cli.terminal import CommandError, err, out
from service.db import Database
from service.jobs.data.checking import Findings, mend, verify
from service.jobs.data.erasing import Keeping, keeping_of
from service.settings import Settings
from service.storage import open_store
from service.storage.store import Store


def check(args: argparse.Namespace, settings: Settings) -> tuple[bool, dict[str, Any]]:
    """Verify, and mend where that was asked for; whether all is well then, and what was found and done."""
    database = Database(settings.database)
    try:
        store, keeping = open_store(settings.store, settings.s3), keeping_of(settings)
        found = _verified(database, store, keeping, quiet=args.json)
        report: dict[str, Any] = {"verify": _told(found)}
        if not args.json:
            out.print("\n".join(_said(found)), markup=False)
        if args.mend and (found.damaged or found.missing or found.erasable):
            if not args.json:
                out.print("\n".join(_meant(found)), markup=False)
            _ask(args)
            report["mend"] = asdict(mend(database, store, keeping, found))
            if not args.json:
                done = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report["mend"].items())
                out.print(f"{'mended':<10} {done}", markup=False)
            return True, report
        return found.is_well, report
    finally:
        database.close()


def _verified(database: Database, store: Store, keeping: Keeping, quiet: bool) -> Findings:
    columns = ("reading", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet) as progress:
        task = progress.add_task("reading", total=None)
        return verify(database, store, keeping, lambda read, total: progress.update(task, completed=read, total=total))


def _ask(args: argparse.Namespace) -> None:
    if args.yes:
        return
    if args.json or not err.is_terminal:
        raise CommandError("Nothing was mended: `--mend` asks first. Give --yes where nobody can answer.")
    if err.input("Do this? [y/N] ").strip().lower() not in ("y", "yes"):
        raise CommandError("Nothing was mended.")


def _told(found: Findings) -> dict[str, Any]:
    return {
        "contents": found.contents,
        "bytes": found.bytes,
        "damaged": list(found.damaged),
        "rows_without_files": {sha256: list(owners) for sha256, owners in found.missing.items()},
        "files_without_rows": [blob.sha256 for blob in found.unheld],
        "past_the_grace": [blob.sha256 for blob in found.erasable],
    }


def _said(found: Findings) -> list[str]:
    lines = [f"{'verified':<10} {found.contents} contents, {found.bytes / 2**20:.1f} MiB read"]
    lines += [f"{'damaged':<10} {sha256}" for sha256 in found.damaged]
    lines += [f"{'missing':<10} {sha256}, held by {', '.join(owners)}" for sha256, owners in found.missing.items()]
    size = sum(blob.size for blob in found.unheld)
    return [*lines, f"{'unheld':<10} {len(found.unheld)} contents, {size / 2**20:.1f} MiB: erased after the grace"]


def _meant(found: Findings) -> list[str]:
    lines = ["This will:"]
    if found.damaged:
        lines.append(f"  set {len(found.damaged)} damaged contents aside")
    if found.damaged or found.missing:
        lines.append("  have results that are damaged or gone made again when they are needed; files must come again")
    if found.erasable:
        lines.append(f"  erase {len(found.erasable)} contents that nobody has held for longer than the grace")
    return lines
