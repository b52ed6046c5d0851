"""Tests of what vLLM and DeepSpeed do for us: the real libraries, on a CPU, in `.venv-scale` (`make test-scale`).

Plain `pytest` does not collect this folder: what `make setup` installs has neither of the two.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny
from tests.unit.engine.conftest import report, stream

__all__ = ["report", "stream"]

HERE = Path(__file__).parent

# Before anything imports the libraries, and inherited by every process that a test starts.
os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "extensions"),  # what DeepSpeed compiles, once an environment
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two tests at once do not fight for the same core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in the process that made it, and ends with it
    "VLLM_NO_USAGE_STATS": "1",
}


HIDDEN = 128
"""Heads of 32: the smallest that vLLM has kernels for on a CPU."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that vLLM can serve."""
    return save_tiny(tmp_path_factory.mktemp("model"), hidden=HIDDEN)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The libraries warn of one another, and of Python: theirs are not our errors."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
