"""What several folders of integration tests share: servers and databases, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.migrating import migrate
from tests.parts import GROWN, Parts, embedded
from tests.parts import grown as grown_parts
from tests.servers import Grown, grown, postgres_server, valkey_server
from tests.tls import Certificates, make_certificates


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with our tables."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real server's URL; its database `migrated` has our tables."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a real server that wants a password."""
    with valkey_server(tmp_path_factory.mktemp("valkey")) as socket:
        yield socket


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of servers at this machine."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def secured(postgres: str, valkey: Path, certificates: Certificates) -> Iterator[Grown]:
    """Both behind a password and TLS, at this machine."""
    with grown("127.0.0.1", postgres, valkey, certificates) as servers:
        yield servers


@pytest.fixture(scope="session")
def parts(request: pytest.FixtureRequest) -> Parts:
    """What tests that do not say otherwise have for a database, a broker and a store."""
    if not GROWN:
        return embedded
    return grown_parts(request.getfixturevalue("secured"), request.getfixturevalue("s3_endpoint"))
