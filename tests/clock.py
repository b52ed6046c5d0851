"""A clock for tests: seconds that pass when told so."""

from __future__ import annotations


class Clock:
    """Fulfils what takes a clock: `now`, whenever it is asked."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
