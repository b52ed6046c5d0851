"""What holds for every test."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end: no collection looks at it again, and stages ask for many."""
    gc.collect()
    gc.freeze()
