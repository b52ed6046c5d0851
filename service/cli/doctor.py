"""`allo doctor`: whether this machine can run the service, and what to do where it cannot."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.exc import SQLAlchemyError

from service import embedded
from service.broker import BrokerDown, CeleryBroker
from service.cli.connection import add_data_dir, local_settings
from service.cli.terminal import out
from service.db import Database
from service.jobs.data.erasing import keeping_of, tally
from service.jobs.running.workers import WorkerView, read_workers
from service.migrating import newest, version
from service.settings import Settings
from service.storage import StoreAway, open_store


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check that this machine can run the service",
        description="Check disk, database, broker and engine, and show who registered as a worker. The exit status is "
        "0 where all is well. It changes nothing.",
    )
    add_data_dir(parser)
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
    for name, problem in problems.items():
        out.print(f"{name:<10} {problem or 'ok'}", style="red" if problem else "green", markup=False)
    if not (problems["database"] or problems["store"]) and version(settings.database):
        out.print(f"{'workers':<10} {_workers(settings)}", markup=False)
        for line in _content(settings):
            out.print(f"{'content':<10} {line}", markup=False)
    return int(any(problems.values()))


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
        return str(error.__cause__ or error)
    if found is not None and found < newest():
        return f"its tables are of {found}, this version's of {newest()}: any process of the service brings them there"
    return ""


def _workers(settings: Settings) -> str:
    """Who has registered. That nobody has is no fault: jobs wait for a worker that comes."""
    database = Database(settings.database)
    try:
        found, now = read_workers(database), database.now()
    finally:
        database.close()
    if not found:
        return "none is registered: `allo up` starts one, and so does `python -m worker` on any machine"
    return "; ".join(_worker(view, now) for view in found)


def _worker(view: WorkerView, now: int) -> str:
    """A worker as people compare clocks: the services judge by their own (see `Watch`)."""
    devices = len(view.offer.devices)
    has = f"{devices} device{'s' * (devices != 1)}" if devices else f"{view.offer.cores} cores"
    return f"{view.worker.id}, {has}, last sign of life {max(0, now - view.worker.beat_at)} s ago"


def _content(settings: Settings) -> list[str]:
    """What is stored, and for whom; what nobody holds is erased after the grace."""
    place = urlsplit(settings.store)
    if place.scheme == "file" and not Path(unquote(place.path)).is_dir():
        return ["nothing is stored yet"]
    database = Database(settings.database)
    try:
        counted = tally(database, open_store(settings.store, settings.s3), keeping_of(settings))
    finally:
        database.close()
    ranked = sorted(counted.items(), key=lambda item: -item[1][1])
    return [f"{owner}: {size / 2**20:.1f} MiB in {count} contents" for owner, (count, size) in ranked]


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
