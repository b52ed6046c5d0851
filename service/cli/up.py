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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from allo_engine.forks import fork
from service import embedded
from service.cli.commands import Commands, described, port
from service.cli.connection import add_data_dir, local_settings
from service.cli.terminal import CommandError, err, out, reported
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
        keeper = Keeper(say=lambda text: err.print(text, markup=False))
        try:
            _start_broker(keeper, settings)
            secret = _opened(settings)
            _start_api(keeper, settings, listener)
            _serve(keeper, settings, _url(args.host, listener), stopped, secret)
        finally:
            (settings.data_dir / "url").unlink(missing_ok=True)
            keeper.stop()
    return 0


def _opened(settings: Settings) -> str:
    """Brings the database up to date; the secret of a new key where DIR/api_key holds none that works. In a process of
    its own: what that loads, nobody needs for as long as the service runs."""
    reading, writing = os.pipe()
    pid = fork(lambda: reported(lambda: _open(settings, writing)))
    os.close(writing)
    with open(reading) as answer:  # noqa: PTH123 - a descriptor
        secret = answer.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(abs(os.waitstatus_to_exitcode(status)))  # it said why
    return secret


def _open(settings: Settings, answer: int) -> None:
    from service.db import Database
    from service.jobs.access.keys import SCOPES, create_key, find_key
    from service.migrating import migrate

    migrate(settings.database)
    database, kept = Database(settings.database), settings.data_dir / "api_key"
    try:
        if not (kept.exists() and find_key(database, kept.read_text().strip())):
            os.write(answer, create_key(database, "local", SCOPES).secret.encode())
    finally:
        database.close()


def _settings(args: argparse.Namespace) -> Settings:
    """What this service's processes read; without a configured broker, one in the data folder."""
    settings = local_settings(args)
    if "ALLO_BROKER_URL" in os.environ:
        return settings
    return settings.model_copy(update={"broker_url": embedded.broker_url(settings.data_dir)})


def _start_broker(keeper: Keeper, settings: Settings) -> None:
    if "ALLO_BROKER_URL" not in os.environ:
        keeper.start(_program("broker", embedded.command(settings.data_dir), settings, patience=5))


def _start_api(keeper: Keeper, settings: Settings, listener: socket.socket) -> None:
    """It inherits the socket: while it restarts, requests wait."""
    fd = listener.fileno()
    command = (sys.executable, "-m", "service.server", "--fd", str(fd))
    keeper.start(_program("api", command, settings, patience=10, pass_fds=(fd,)))


def _start_worker(keeper: Keeper, settings: Settings) -> None:
    if "ALLO_BROKER_URL" not in os.environ:
        embedded.wait_until_ready(settings.data_dir)
    command = (sys.executable, "-m", "worker")
    keeper.start(_program("worker", command, settings, patience=settings.grace_seconds + 15))


def _program(
    name: str, command: Sequence[str], settings: Settings, patience: float, pass_fds: tuple[int, ...] = ()
) -> Program:
    environment, log = os.environ | settings.to_environment(), settings.data_dir / "logs" / f"{name}.log"
    return Program(name, command, environment, log, patience, pass_fds)


def _serve(keeper: Keeper, settings: Settings, url: str, stopped: threading.Event, secret: str) -> None:
    """Say where the service is once it answers, then tend its processes until the end. The worker, which has most to
    load, comes last: the API would share the processor with it."""
    if _wait_until_ready(keeper, settings, url, stopped):
        _start_worker(keeper, settings)
        _announce(settings, url, secret)
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


def _announce(settings: Settings, url: str, secret: str) -> None:
    if secret:
        _keep(settings.data_dir / "api_key", secret)
    _write(settings.data_dir / "url", url + "\n")
    out.print(f"[bold]ALLO is ready at {url}[/bold]")
    if secret:
        out.print(f"API key: [bold]{secret}[/bold]  (shown this once; kept in {settings.data_dir / 'api_key'})")
    out.print(f"Data: {settings.data_dir}   Logs: {settings.data_dir / 'logs'}   Stop: Ctrl-C")


def _write(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.replace(path)


def _keep(path: Path, secret: str) -> None:
    """Where its owner alone may read it."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - a descriptor
        file.write(secret + "\n")


def _answers(url: str) -> bool:
    """Whether /healthz is answered; an HTTP client of its own would be most of what this process holds."""
    where = urlsplit(url)
    try:
        with socket.create_connection((where.hostname, where.port), timeout=2.0) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(12) == b"HTTP/1.1 200"
    except OSError:
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
        (data_dir / "url").unlink(missing_ok=True)  # of one that was killed; before the lock says that this one serves
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
