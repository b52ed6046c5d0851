"""Loading torch, transformers and what they bring, which takes seconds. Free of all of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Around imports: what they make stays to the end, so that no collection looks at it, meanwhile or later. A stage
    asks for many, and of a short program they are a third."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
