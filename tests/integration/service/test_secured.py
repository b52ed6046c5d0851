"""A database and a broker behind passwords and TLS: both clients of the broker are as strict, and whoever comes in
wrongly is told what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from service.broker import ONE_TRY, BrokerDown, CeleryBroker
from service.brokers import for_celery
from service.cli import main
from service.db import Database
from service.exchange import Desk, Exchange, Seat
from service.migrating import NoDatabase, migrate
from service.settings import Settings
from tests.servers import PASSWORD, QUOTED, Grown
from tests.tls import make_certificates


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of an authority that signed nothing of ours."""
    return str(make_certificates(tmp_path_factory.mktemp("stranger")).authority)


def worker(url: str) -> None:
    """Connect as Celery does in a worker."""
    with Celery(broker=for_celery(url), set_as_current=False).connection_for_write() as connection:
        connection.ensure_connection(**ONE_TRY)


def ring(url: str) -> None:
    broker = CeleryBroker(url, "stages")
    try:
        broker.ring("worker", "stage", 1)
    finally:
        broker._celery.pool.force_close_all()


def ping(url: str) -> None:
    CeleryBroker(url, "stages").ping()


def desk(url: str) -> None:
    desk = Desk(url, "stages", "worker")
    try:
        desk.offer(Seat([], 0, 0))
    finally:
        desk.close()


def exchange(url: str) -> None:
    async def ask() -> None:
        try:
            async with Exchange(url, "stages").opened() as caller:
                await caller.seats(["worker"])
        finally:
            for _ in range(20):  # what could agree on no TLS is closed in later turns of the loop
                await anyio.sleep(0.001)

    anyio.run(ask)


@pytest.mark.parametrize("client", [worker, ring, ping, desk, exchange])
def test_every_client_of_the_broker_wants_its_password_and_a_certificate_that_it_trusts(
    secured: Grown, client: Callable[[str], None], stranger: str
) -> None:
    client(secured.broker_url())
    for untrusted in (secured.broker_url().partition("?")[0], secured.broker_url(ssl_ca_certs=stranger)):
        with pytest.raises((BrokerDown, OperationalError), match="certificate"):
            client(untrusted)
    with pytest.raises((BrokerDown, OperationalError), match="password"):
        client(secured.broker_url("wrong"))


def test_whoever_comes_to_the_broker_wrongly_is_told_what_to_do(secured: Grown, stranger: str) -> None:
    def words(url: str) -> str:
        with pytest.raises(BrokerDown) as down:
            ring(url)
        assert PASSWORD not in str(down.value)
        assert QUOTED not in str(down.value)
        return str(down.value)

    right = secured.broker_url()
    assert "refuses the user or the password of ALLO_BROKER_URL" in words(secured.broker_url("wrong"))
    assert "refuses the user or the password of ALLO_BROKER_URL" in words(right.replace(f":{QUOTED}@", ""))
    assert "not trusted" in words(secured.broker_url(ssl_ca_certs=stranger))
    assert "not trusted (Hostname mismatch" in words(right.replace("127.0.0.1", "localhost"))
    assert "ssl_ca_certs, ssl_certfile or ssl_keyfile is not there" in words(secured.broker_url(ssl_ca_certs="/no.pem"))
    assert "a port with TLS is rediss://" in words(right.replace("rediss", "redis").partition("?")[0])
    assert "refused" in words("redis://127.0.0.1:1/0")


def test_a_database_is_reached_through_tls_by_a_password(secured: Grown) -> None:
    with secured.database() as url:
        database = Database(url)
        database.ping()
        with database.engine.connect() as connection:
            info = connection.connection.driver_connection.info  # type: ignore[union-attr]
            assert (info.user, info.get_parameters()["sslmode"]) == ("allo", "verify-full")
        database.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"secret": "wrong"}, 'password authentication failed for user "allo"'),
        ({"sslrootcert": "stranger"}, "sslrootcert=FILE"),
        ({"sslrootcert": "/no.pem"}, 'root certificate file "/no.pem" does not exist'),
        ({"sslmode": "disable"}, "ALLO_DATABASE_URL says ?sslmode=verify-full"),
    ],
)
def test_whoever_comes_to_the_database_wrongly_is_told_what_to_do(
    secured: Grown, stranger: str, options: dict[str, str], words: str
) -> None:
    options = {name: stranger if value == "stranger" else value for name, value in options.items()}
    with pytest.raises(NoDatabase) as told:
        migrate(secured.database_url("migrated", **options))
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert QUOTED not in str(told.value)


def test_doctor_says_how_it_is_with_both(
    secured: Grown, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def said(database: str, broker: str) -> dict[str, str]:
        monkeypatch.setenv("ALLO_DATABASE_URL", database)
        monkeypatch.setenv("ALLO_BROKER_URL", broker)
        main(["doctor", "--json", "--data-dir", str(tmp_path)])
        checks: dict[str, str] = json.loads(capsys.readouterr().out)["checks"]
        return checks

    good = said(secured.database_url("migrated"), secured.broker_url())
    assert (good["database"], good["broker"]) == ("ok", "ok")
    bad = said(secured.database_url("migrated", "wrong"), secured.broker_url("wrong"))
    assert "password authentication failed" in bad["database"]
    assert "the password of ALLO_BROKER_URL" in bad["broker"]


def test_a_process_that_the_database_does_not_let_in_ends_with_a_line(secured: Grown, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url=secured.database_url("migrated", "wrong"), log_format="json")
    command = [sys.executable, "-m", "worker.scheduler", "", "", "0", "0"]
    done = subprocess.run(command, env=settings.to_environment(), capture_output=True, text=True, check=False)
    line = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, line["event"]) == (1, "not_started")
    assert "password authentication failed" in line["error"]
    assert "Traceback" not in done.stderr
