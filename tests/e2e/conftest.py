"""A real service for the tests: `allo up` in a folder of its own, with a tiny model registered."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.waiting import PATIENCE, until

if TYPE_CHECKING:  # what takes seconds is not loaded by a process that hands out tests
    import openai

SHORT_TIMES = {
    "ALLO_HEARTBEAT_SECONDS": "0.5",
    "ALLO_LEASE_SECONDS": "6",
    "ALLO_SELF_FENCE_SECONDS": "4",
    "ALLO_REDISPATCH_SECONDS": "3",
    "ALLO_CALIBRATE_SECONDS": "0",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Service:
    """A running `allo up`."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return (self.folder / "url").read_text().strip()

    @property
    def key(self) -> str:
        return (self.folder / "api_key").read_text().strip()

    def client(self) -> openai.OpenAI:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key)

    def allo(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """The command, in this process: to load it takes longer than what it does."""
        from service.cli import main

        said, complaint = io.StringIO(), io.StringIO()
        with redirect_stdout(said), redirect_stderr(complaint):
            status = main([*map(str, arguments), "--data-dir", str(self.folder)])
        return subprocess.CompletedProcess(arguments, status, said.getvalue(), complaint.getvalue())

    def processes(self, *words: str) -> list[psutil.Process]:
        """The service's processes whose command line holds all the words, wherever in the tree they are."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if all(word in process.cmdline() for word in words):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found


def start(folder: Path, **environment: str) -> Service:
    command = [sys.executable, "-m", "service.cli", "up", "--data-dir", str(folder), "--port", "0"]
    service = Service(folder, subprocess.Popen(command, env={**os.environ, **SHORT_TIMES, **environment}))
    until(lambda: (folder / "url").exists() or service.process.poll() is not None)
    assert service.process.poll() is None, "allo up ended by itself"
    return service


def stop(service: Service) -> list[psutil.Process]:
    """End the service as its user would; the processes that it left, which must be none."""
    tree = psutil.Process(service.process.pid).children(recursive=True)
    service.process.send_signal(signal.SIGTERM)
    service.process.wait(PATIENCE)
    return psutil.wait_procs(tree, timeout=PATIENCE)[1]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from tests.tiny import save_tiny

    folder = tmp_path_factory.mktemp("service")
    model = save_tiny(folder / "tiny-source", merges=[("q", "u")])  # GGUF has no place for a BPE that merges nothing
    running = start(folder / "data")
    running.allo("models", "add", "tiny", model).check_returncode()
    yield running
    assert stop(running) == []


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with service.client() as client:
        yield client
