"""What holds for every test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.s3 import Wire, s3_server

LONGEST = (
    *("tests/e2e/", "tests/browser/test_by_hand.py", "tests/integration/worker/", "tests/unit/engine/test_ranks.py"),
    *("tests/unit/engine/test_shares.py", "tests/integration/engine/", "tests/integration/service/test_fuzz.py"),
    *("tests/browser/", "tests/integration/cli/", "tests/unit/engine/training/"),
)
"""What takes longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long file that begins last is waited for by one process alone; `--no-loadscope-reorder` keeps this order."""

    def place(item: pytest.Item) -> int:
        return next((place for place, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))

    items.sort(key=place)


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
