"""Tests of what a CPU cannot show. They run where torch finds a CUDA device (`make gpu`) and are skipped elsewhere.

Figures that they measure are printed as a table, and written as JSON where ALLO_GPU_REPORT names a file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
FIGURES: list[dict[str, Any]] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch  # here: a process that hands out tests does without

    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))


@pytest.fixture
def figures() -> list[dict[str, Any]]:
    """Where a test leaves what it measured: rows of a table."""
    return FIGURES


def pytest_terminal_summary() -> None:
    if not FIGURES:
        return
    import torch

    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "figures": FIGURES}
    if path := os.environ.get("ALLO_GPU_REPORT"):
        Path(path).write_text(json.dumps(report, indent=2))
    columns = list(dict.fromkeys(name for row in FIGURES for name in row))
    table = Table(*columns, title=report["device"])
    for row in FIGURES:
        table.add_row(*(_shown(row.get(name, "")) for name in columns))
    Console(width=180).print(table)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
