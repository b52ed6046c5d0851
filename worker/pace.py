"""Whether an engine that lives still works: told from how often it says something. The clock is its caller's.

A stage is stalled once it has been silent for its patience, which its kind sets, and for many times its own longest
silence: a slow stage has said so itself. What it loads before its first word may take several patiences. One that
reads or writes large files in its silence works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_TIMES = 20.0
"""The longest silence so far, so often, is no reason to worry."""

_LOADING = 4.0
"""Patiences before the first word."""

_BLIND_SECONDS = 5.0
"""Whoever looks less often than this has stood still itself."""

_LARGE_BYTES = 2**20
"""Read and written in half of what is allowed: no mere waiting for others."""

SILENCE: Mapping[str, float] = {"sample": 2, "locate": 2, "evaluate": 24}
"""Patiences of the kinds of stages that work in large pieces: they generate, or run the harness, which says nothing."""


@dataclass
class Pace:
    """`patience`: seconds of silence that are always allowed; `began`: when the engine did; `traffic`: the bytes that
    it has read and written so far. `stalled` is for how long it has been silent, once it is stalled."""

    patience: float
    began: float
    traffic: Callable[[], int] = lambda: 0
    stalled: float | None = None
    _last: float = field(init=False)
    _looked: float = field(init=False)
    _longest: float | None = field(default=None, init=False)
    _moved: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._last = self._looked = self.began

    def moved(self, now: float) -> None:
        """It has said something."""
        self._longest = 0.0 if self._longest is None else max(self._longest, now - self._last)
        self._last = self._looked = now
        self._moved = None

    def stalls(self, now: float) -> bool:
        """Whether it has just become stalled. Time in which nobody looked is held against nobody."""
        gap, self._looked = now - self._looked, now
        if gap > _BLIND_SECONDS:
            self._last += gap
        silent = now - self._last
        allowed = self.patience * _LOADING if self._longest is None else max(self.patience, _TIMES * self._longest)
        if self.stalled is None and self._moved is None and silent > allowed / 2:
            self._moved = self.traffic()
        if self.stalled is not None or self._moved is None or silent <= allowed:
            return False
        if self.traffic() - self._moved >= _LARGE_BYTES:
            self._last, self._moved = now, None
            return False
        self.stalled = silent
        return True
