"""What holds for every test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.s3 import Wire, s3_server


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
