"""Which parts the integration tests run on: embedded ones, SQLite and a folder, or those of a grown service, where
TEST_PARTS=grown says so. `make test-grown` does."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import pytest

from tests.s3 import settings_of
from tests.servers import Grown

GROWN = os.environ.get("TEST_PARTS") == "grown"

of_embedded = partial(pytest.mark.skipif, GROWN)
"""Marks a test of an embedded part; `reason` says of which, and what grown ones have instead."""

Parts = Callable[[], AbstractContextManager[dict[str, str]]]
"""Makes parts that nobody else has, for as long as they are needed: the settings that name them."""


def embedded() -> AbstractContextManager[dict[str, str]]:
    """A data folder holds them all."""
    return nullcontext({})


def grown(servers: Grown, s3_endpoint: str) -> Parts:
    """PostgreSQL and Valkey behind passwords and TLS, and a store in S3."""

    @contextmanager
    def parts() -> Iterator[dict[str, str]]:
        with servers.database() as url:
            named = {"database_url": url, "broker_url": servers.broker_url()}
            yield named | settings_of(s3_endpoint, uuid.uuid4().hex)

    return parts
