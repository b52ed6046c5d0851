"""What holds for every test."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from tests.s3 import Wire, s3_server

E2E = "tests/e2e/"
LONGEST = (
    *(E2E, "tests/browser/test_by_hand.py", "tests/integration/worker/", "tests/unit/engine/test_ranks.py"),
    *("tests/unit/engine/test_shares.py", "tests/integration/engine/", "tests/integration/service/test_fuzz.py"),
    *("tests/browser/", "tests/integration/cli/", "tests/unit/engine/training/"),
)
"""What takes longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long file that begins last is waited for by one process alone; `--no-loadscope-reorder` keeps this order."""

    def place(item: pytest.Item) -> int:
        return next((place for place, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side, the end-to-end tests stay together as those of a file do: they share one service."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return E2E if nodeid.startswith(E2E) else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True, scope="module")
def _what_is_there_stays() -> None:
    """No collection looks again at what was imported or is shared by now: stages ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server that speaks S3."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def wire(s3_endpoint: str) -> Iterator[Wire]:
    """A wire to it, of the test's own."""
    wire = Wire(s3_endpoint)
    yield wire
    wire.close()
