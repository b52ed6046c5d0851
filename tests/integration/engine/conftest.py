from __future__ import annotations

import pytest
import torch

from allo_engine.report import Report
from tests.unit.engine.conftest import Lines


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def stream() -> Lines:
    return Lines()


@pytest.fixture
def report(stream: Lines) -> Report:
    return Report(stream)
