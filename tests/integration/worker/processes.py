"""Real processes around a house: workers, a broker, and what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil
from redis import Redis
from redis.exceptions import ConnectionError
from sqlalchemy import select

from service.brokers import for_redis
from service.embedded import broker_url, command, socket_path
from service.jobs.tables import Stage
from service.settings import Settings
from tests.integration.worker.house import House
from tests.servers import PASSWORD, QUOTED
from tests.tls import Certificates, TlsRelay
from tests.waiting import PATIENCE, until
from worker.sweep import STAGE_MARK


class Worker:
    """`python -m worker` in a house, and every process that it ever had."""

    def __init__(self, house: House, settings: Settings | None = None, within: Sequence[str] = ()) -> None:
        """`settings` of another worker than the house's own; `within` begins its command line."""
        self.house, self.settings, self.within = house, settings or house.settings, within
        self.settings.data_dir.mkdir(exist_ok=True)
        self.log = self.settings.data_dir / "worker.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, sys.executable, "-m", "worker"],
                env=os.environ | self.settings.to_environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def parts(self) -> dict[str, int]:
        """Each process of a running stage, by its role."""
        trainer = psutil.Process(self.house.trainer()["pid"])
        supervisor = trainer.parent()
        assert supervisor
        child = supervisor.parent()
        assert child
        parts = {"trainer": trainer, "supervisor": supervisor, "child": child}
        return {name: process.pid for name, process in parts.items()} | {"worker": self.process.pid}

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


class Valkey:
    """The broker of `allo up`, which can be killed and started again; with `certificates` it stands behind a password
    and TLS. `url`: where it is."""

    def __init__(self, data_dir: Path, certificates: Certificates | None = None) -> None:
        self._command, self.url = command(data_dir), broker_url(data_dir)
        self._relay = None
        if certificates is not None:
            self._command += ["--requirepass", PASSWORD]
            self._relay = TlsRelay("127.0.0.1", socket_path(data_dir), certificates.context())
            authority = quote(str(certificates.authority))
            self.url = f"rediss://:{QUOTED}@127.0.0.1:{self._relay.port}/0?ssl_ca_certs={authority}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        until(self._answers)

    def client(self) -> Redis:
        return Redis.from_url(for_redis(self.url))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        if self._relay is not None:
            self._relay.close()

    def _answers(self) -> bool:
        with suppress(ConnectionError), self.client() as client:
            return bool(client.ping())
        return False


def leftovers(house: House) -> list[int]:
    """Every process of any stage of the house."""
    with house.database.snapshot() as session:
        stages = set(session.scalars(select(Stage.id)))
    return [process.pid for process in psutil.process_iter() if _environment(process).get(STAGE_MARK) in stages]


def kill_tree(pid: int) -> None:
    """What a power cut does to a host; to what has ended already, nothing."""
    tree: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        tree = [*top.children(recursive=True), top]
    for deed in (psutil.Process.suspend, psutil.Process.kill):
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                deed(process)
    psutil.wait_procs(tree)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}
