"""Waiting for what must happen, on a machine of any pace: only what hangs fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds. Far more than anything here takes on a busy machine: it ends a test that would never end."""


def until(true: Callable[[], Any]) -> Any:
    """What `true()` returns once that is truthy; fails the test where it never becomes so."""
    end = time.monotonic() + PATIENCE
    while not (value := true()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return value
