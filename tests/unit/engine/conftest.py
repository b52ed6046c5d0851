from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from allo_engine.report import Report
from tests.tiny import save_tiny


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


class Lines(io.StringIO):
    """A stream that gives back the lines that a report wrote."""

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def stream() -> Lines:
    return Lines()


@pytest.fixture
def report(stream: Lines) -> Report:
    return Report(stream)
