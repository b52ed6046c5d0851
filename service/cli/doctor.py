"""`allo doctor`: whether this machine can run the service, and what to do where it cannot."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy.exc import SQLAlchemyError

from service import embedded
from service.broker import BrokerDown, CeleryBroker
from service.cli import checkup
from service.cli.commands import Commands, add_json, described
from service.cli.connection import add_data_dir, local_settings
from service.cli.terminal import out
from service.cli.workers import WIDTH, in_words
from service.db import Database
from service.engines import told
from service.jobs.data import scrubbing
from service.jobs.data.erasing import keeping_of, tally
from service.jobs.running.workers import read_workers
from service.migrating import newest, version
from service.settings import Settings
from service.storage import StoreAway, open_store

_EPILOG = """\
examples:
  allo doctor                           disk, database, broker, store, engine and workers: a line each
  allo doctor --verify                  and every stored content against its hash, which reads all of them
  allo doctor --mend                    says what would put right what --verify finds, asks, and does it

The exit status is 0 where all is well. It changes nothing but with --mend.
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = described(commands, "doctor", "check that this machine can run the service", _EPILOG)
    add_data_dir(parser)
    add_json(parser)
    parser.add_argument("--verify", action="store_true", help="read all that is stored, and compare it with the rows")
    parser.add_argument("--mend", action="store_true", help="verify, say what would put it right, ask, and do that")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line a check."""
    settings = local_settings(args)
    checks: dict[str, Callable[[Settings], str]] = {
        "disk": _disk,
        "database": _database,
        "broker": _broker,
        "store": _store,
        "engine": _engine,
    }
    problems = {name: check(settings) for name, check in checks.items()}
    report: dict[str, Any] = {"checks": {name: problem or "ok" for name, problem in problems.items()}}
    is_well, can_look = not any(problems.values()), not (problems["database"] or problems["store"])
    can_look = can_look and version(settings.database) is not None
    report["workers"] = _workers(settings) if can_look else []
    if can_look:
        report |= {"content": _content(settings), "damaged": _damages(settings)}
    if not args.json:
        _show(problems, report)
    if can_look and _has_store(settings) and (args.verify or args.mend):
        is_whole, found = checkup.check(args, settings)
        is_well, report = is_well and is_whole, report | found
    if args.json:
        print(json.dumps(report))  # noqa: T201 - rich would break long lines
    return int(not is_well)


def _show(problems: Mapping[str, str], report: Mapping[str, Any]) -> None:
    for name, problem in problems.items():
        out.print(f"{name:<10} {problem or 'ok'}", style="red" if problem else "green", markup=False)
    if "content" in report:
        if not report["workers"]:
            out.print(f"{'workers':<10} {_NOBODY}", markup=False)
        for worker in report["workers"]:
            words = textwrap.indent(in_words(worker, WIDTH - 11), " " * 11)
            out.print(f"{'worker':<10} {words.lstrip()}", markup=False)
        for line in (*_held(report["content"]), *_read_again(report["damaged"])):
            out.print(f"{'content':<10} {line}", markup=False)


def _disk(settings: Settings) -> str:
    folder = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return f"{folder} is not writable"
    free = shutil.disk_usage(folder).free
    wanted = settings.min_free_bytes
    return "" if free >= wanted else f"{free / 2**30:.1f} GiB free, {wanted / 2**30:.1f} wanted (ALLO_MIN_FREE_BYTES)"


def _database(settings: Settings) -> str:
    """That there is none yet is no fault: whatever starts first makes it."""
    try:
        found = version(settings.database)
    except SQLAlchemyError as error:
        return told(error)
    if found is not None and found < newest():
        return f"its tables are of {found}, this version's of {newest()}: any process of the service brings them there"
    return ""


_NOBODY = "none is registered: `allo up` starts one, and so does `python -m worker` on any machine"
"""No fault: jobs wait for a worker that comes."""


def _workers(settings: Settings) -> list[dict[str, Any]]:
    """Who has registered, with what, as the API says it. Whether each lives the services judge by their own clocks."""
    from service.api import render  # here: no other command needs it

    database = Database(settings.database)
    try:
        return [render.worker(view) for view in read_workers(database)]
    finally:
        database.close()


def _content(settings: Settings) -> dict[str, dict[str, int]]:
    """What is stored, by who holds it, the most first; what nobody holds is erased after the grace."""
    if not _has_store(settings):
        return {}
    database = Database(settings.database)
    try:
        counted = tally(database, open_store(settings.store, settings.s3), keeping_of(settings))
    finally:
        database.close()
    ranked = sorted(counted.items(), key=lambda item: -item[1][1])
    return {owner: {"contents": count, "bytes": size} for owner, (count, size) in ranked}


def _held(content: Mapping[str, Mapping[str, int]]) -> list[str]:
    told = [
        f"{owner}: {held['bytes'] / 2**20:.1f} MiB in {held['contents']} contents" for owner, held in content.items()
    ]
    return told or ["nothing is stored yet"]


def _has_store(settings: Settings) -> bool:
    """Whether there is one: a folder is made by whoever stores first."""
    place = urlsplit(settings.store)
    return place.scheme != "file" or Path(unquote(place.path)).is_dir()


def _damages(settings: Settings) -> dict[str, Any]:
    """What was found damaged, and how far the reading has come."""
    database = Database(settings.database)
    try:
        state = scrubbing.read(database)
    finally:
        database.close()
    return {"contents": [row.id for row in state.damages], "bytes_read": state.bytes, "rounds": state.rounds}


def _read_again(damaged: Mapping[str, Any]) -> list[str]:
    told = [f"{sha256} is damaged or gone: bring or make it again" for sha256 in damaged["contents"]]
    read = f"read again since it was stored: {damaged['bytes_read'] / 2**20:.1f} MiB"
    return [*told, f"{read}; whole rounds: {damaged['rounds']}"]


def _broker(settings: Settings) -> str:
    if "ALLO_BROKER_URL" not in os.environ:
        binary = embedded.binary()
        return "" if os.access(binary, os.X_OK) else f"{binary} cannot be run: set ALLO_BROKER_URL to a Redis server"
    try:
        CeleryBroker(settings.broker_url, settings.queue).ping()
    except BrokerDown as error:
        return str(error)
    return ""


def _store(settings: Settings) -> str:
    """Whether a store on another machine answers; a folder is made where it is missing."""
    try:
        if not settings.store.startswith("file:"):
            open_store(settings.store, settings.s3).exists("0" * 64)
    except (StoreAway, ValueError) as error:
        return str(error)
    return ""


def _engine(settings: Settings) -> str:
    if settings.engine or importlib.util.find_spec("torch"):
        return ""
    return "torch is not installed: this machine can serve the API, but train nothing"
