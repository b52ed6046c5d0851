"""Waiting for what must happen, on a machine of any pace: only what hangs fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds. Far more than anything here takes on a busy machine: it ends a test that would never end."""


OFTEN, SELDOM = 0.02, 0.1
"""Seconds between two looks: at first, and where a twentieth of the wait is as long. A look may cost as much as the
machine has to spare."""


def until(true: Callable[[], Any]) -> Any:
    """What `true()` returns once that is truthy; fails the test where it never becomes so."""
    start = time.monotonic()
    while not (value := true()):
        waited = time.monotonic() - start
        assert waited < PATIENCE, "it did not happen"
        time.sleep(min(max(OFTEN, waited / 20), SELDOM))
    return value
