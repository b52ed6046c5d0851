"""Tests of what a CPU cannot show. They run where torch finds a CUDA device (`make gpu`) and are skipped elsewhere.

Figures that they measure are printed as a table, and written as JSON, as they come, where ALLO_GPU_REPORT names a file.
None is begun once ALLO_GPU_SECONDS have passed: whoever lends a device may want it back.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
FIGURES: list[dict[str, Any]] = []
ENGINES = ("pydantic", "rapidfuzz", "math_verify", "transformers", "accelerate")
"""What the engine imports beside torch."""

BEGAN, SECONDS = time.monotonic(), float(os.environ.get("ALLO_GPU_SECONDS", "600"))


def pytest_configure() -> None:
    if missing := [name for name in ENGINES if importlib.util.find_spec(name) is None]:
        raise pytest.UsageError(f"The engine needs {', '.join(missing)}: see `gpu` in the Makefile.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch  # here: a process that hands out tests does without

    ours = [item for item in items if HERE in item.path.parents]
    if not torch.cuda.is_available():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device"))
        return
    for item in ours:  # whatever release is there may warn of what ours does not: of float32 products without TF32, say
        item.add_marker(pytest.mark.filterwarnings("default"))
        item.add_marker(pytest.mark.filterwarnings("error:flex_attention called without torch.compile"))
    items.sort(key=lambda item: item in ours and item.path.name == "test_figures.py")  # what must hold comes first


@pytest.fixture
def left() -> Callable[[], float]:
    """Seconds until no figure is begun any more."""
    return lambda: SECONDS - (time.monotonic() - BEGAN)


@pytest.fixture
def figures() -> Iterator[list[dict[str, Any]]]:
    """Where a test leaves what it measured: rows of a table."""
    yield FIGURES
    if path := os.environ.get("ALLO_GPU_REPORT"):
        Path(path).write_text(json.dumps(_report(), indent=2))


def pytest_terminal_summary() -> None:
    if not FIGURES:
        return
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(name for row in FIGURES for name in row))
    table = Table(*columns, title=_report()["device"])
    for row in FIGURES:
        table.add_row(*(_shown(row.get(name, "")) for name in columns))
    Console(width=180).print(table)


def _report() -> dict[str, Any]:
    import torch

    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "figures": FIGURES}


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
