"""`allo up`: the whole service on one machine, from one folder."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from service import embedded
from service.cli.commands import Commands, described, port
from service.cli.connection import add_data_dir, local_settings
from service.cli.terminal import CommandError, err, out
from service.db import Database
from service.jobs.access.keys import SCOPES, create_key, find_key
from service.migrating import migrate
from service.processes import Keeper, Program, log_tail
from service.settings import Settings

DEFAULT_PORT = 8000

_READY_SECONDS = 600.0
"""Long, for a starved machine: an API that ended is told at once."""

_EPILOG = """\
examples:
  allo up                                   everything in ./allo-data, on port 8000
  allo up --data-dir /srv/allo --port 0     another folder, any free port
  ALLO_DATABASE_URL=postgresql://… ALLO_BROKER_URL=redis://… allo up

The first start makes an API key, prints it once and keeps it in DIR/api_key. Logs are in DIR/logs. Ctrl-C or SIGTERM
ends everything; a running stage writes a checkpoint first, and goes on from it after the next `allo up`.
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = described(
        commands,
        "up",
        "start the service: API, worker, and a broker if none is configured",
        _EPILOG,
        "Start the whole service on this machine: database, broker, API and worker.",
    )
    add_data_dir(parser)
    parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="port to listen on, 0 for any free one (8000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    stopped = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, lambda *_: stopped.set())
    settings = _settings(args)
    settings.open_data_dir()
    with sole_owner(settings.data_dir), _listening(args.host, args.port) as listener:
        migrate(settings.database)
        keeper = Keeper(say=lambda text: err.print(text, markup=False))
        try:
            _start(keeper, settings, listener)
            _serve(keeper, settings, _url(args.host, listener), stopped)
        finally:
            (settings.data_dir / "url").unlink(missing_ok=True)
            keeper.stop()
    return 0


def first_key(settings: Settings) -> str | None:
    """Make the key in DIR/api_key where there is none that works; the new key, to be shown once."""
    path = settings.data_dir / "api_key"
    database = Database(settings.database)
    try:
        if path.exists() and find_key(database, path.read_text().strip()):
            return None
        secret = create_key(database, "local", SCOPES).secret
    finally:
        database.close()
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - a descriptor
        file.write(secret + "\n")
    return secret


def _settings(args: argparse.Namespace) -> Settings:
    """What this service's processes read; without a configured broker, one in the data folder."""
    settings = local_settings(args)
    if "ALLO_BROKER_URL" in os.environ:
        return settings
    return settings.model_copy(update={"broker_url": embedded.broker_url(settings.data_dir)})


def _start(keeper: Keeper, settings: Settings, listener: socket.socket) -> None:
    """The broker first, then the two that need it. The API inherits the socket: while it restarts, requests wait."""
    logs, environment = settings.data_dir / "logs", os.environ | settings.to_environment()
    python = (sys.executable, "-m")
    if "ALLO_BROKER_URL" not in os.environ:
        command = embedded.command(settings.data_dir)
        keeper.start(Program("broker", command, environment, logs / "broker.log", patience=5))
        embedded.wait_until_ready(settings.data_dir)
    api, fd = [*python, "service.server", "--fd", str(listener.fileno())], (listener.fileno(),)
    keeper.start(Program("api", api, environment, logs / "api.log", patience=10, pass_fds=fd))
    worker_patience = settings.grace_seconds + 15
    keeper.start(Program("worker", [*python, "worker"], environment, logs / "worker.log", patience=worker_patience))


def _serve(keeper: Keeper, settings: Settings, url: str, stopped: threading.Event) -> None:
    """Say where the service is once it answers, then tend its processes until the end."""
    if _wait_until_ready(keeper, settings, url, stopped):
        _announce(settings, url)
        while not stopped.wait(0.5):
            keeper.tend()
        out.print(f"Stopping. A running stage has up to {settings.grace_seconds:.0f} s to write a checkpoint.")


def _wait_until_ready(keeper: Keeper, settings: Settings, url: str, stopped: threading.Event) -> bool:
    end = time.monotonic() + _READY_SECONDS
    with out.status("Starting …"):
        while not stopped.wait(0.1):
            if _answers(url):
                return True
            if time.monotonic() > end or not keeper.running("api"):
                log = settings.data_dir / "logs" / "api.log"
                raise CommandError(f"The API did not start. The end of {log}:\n{log_tail(log)}")
    return False


def _announce(settings: Settings, url: str) -> None:
    secret = first_key(settings)
    _write(settings.data_dir / "url", url + "\n")
    out.print(f"[bold]ALLO is ready at {url}[/bold]")
    if secret:
        out.print(f"API key: [bold]{secret}[/bold]  (shown this once; kept in {settings.data_dir / 'api_key'})")
    out.print(f"Data: {settings.data_dir}   Logs: {settings.data_dir / 'logs'}   Stop: Ctrl-C")


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.replace(path)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


def _url(host: str, listener: socket.socket) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - not bound here
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}"


@contextmanager
def sole_owner(data_dir: Path) -> Iterator[None]:
    """One `allo up` a data folder; the lock ends with its holder, however that ended."""
    with (data_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CommandError(
                f"Another `allo up` (process {lock.read().strip()}) already serves {data_dir}: use that one, or choose "
                "another --data-dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """The service's socket, bound here, so that a taken port is known before anything starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"Cannot listen on {host}:{port} ({error.strerror}): another program may hold the port. Choose another "
                "with --port; 0 takes any that is free."
            ) from None
        listener.listen(2048)
        yield listener
