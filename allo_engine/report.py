"""What a stage tells the process that runs it: one JSON object a line on a stream.

Types: `progress` {step, total, metrics}, `message` {level, message, data}, `checkpoint` {step}, and as the last line
either `result` {metrics} or `error` {code, message}. `step` and `total` of progress count work, in tokens or problems,
so that their ratio is a fair share of the stage's time. `checkpoint` says that a later run can go on from here: its
`step` is the stage's own count of what is done, the same however often and wherever the stage was resumed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from allo_engine.held import device_use, held_bytes

Metrics = Mapping[str, float | int]

Tick = Callable[[int], None]
"""Told how much work was done since it was last told, in the stage's own unit."""


class StageError(Exception):
    """A stage that cannot go on, for a reason its user can act on. `code` is for programs, `message` for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return self.message


class Stopped(Exception):
    """The stage was asked to stop and left what it needs to go on later."""


class Report:
    """Writes a stage's progress and holds the request to stop."""

    def __init__(self, stream: TextIO, every_seconds: float = 0.5) -> None:
        self._stream, self._every, self._last = stream, every_seconds, 0.0
        self._kept = 0.0
        self._measured: tuple[int, float, float] | None = None
        self.stop_requested = False
        self.before = 0
        """Work that an earlier part of the stage has done: it is counted in all progress from then on."""
        self.peak_bytes = 0
        """The most memory that this process and one that it had beside it held together, as far as that is known."""

    def progress(self, step: int, total: int, metrics: Metrics | None = None) -> None:
        """Say how far the stage is. Lines without metrics are thinned out in time; those with metrics all go."""
        now = time.monotonic()
        if metrics or step >= total or now - self._last >= self._every:
            self._last = now
            figures = dict(metrics or {}) | (self._pace(step, now) if metrics else {})
            self._write("progress", step=self.before + step, total=self.before + total, metrics=figures)

    def _pace(self, step: int, now: float) -> dict[str, float | int]:
        """Work a second and the use of the device since the last step that had metrics, and the memory that is held
        now."""
        before, self._measured = self._measured, (step, now, time.process_time())
        figures: dict[str, float | int] = {"memory_bytes": held_bytes()}
        if before is not None and now > before[1] and step > before[0]:
            figures["tokens_per_second"] = round((step - before[0]) / (now - before[1]), 1)
            use = device_use(self._measured[2] - before[2], now - before[1])
            figures |= {} if use is None else {"device_use": round(use, 3)}
        return figures

    def checkpoint(self, step: int) -> None:
        """Say that the work folder holds, on the disk, what a run needs to go on behind this step."""
        self._write("checkpoint", step=step)

    def kept(self, count: int) -> None:
        """The same of what is kept piece by piece, thinned out in time: so many pieces are there."""
        if (now := time.monotonic()) - self._kept >= 10 * self._every:
            self._kept = now
            self.checkpoint(count)

    def message(self, message: str, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
        self._write("message", level=level, message=message, data=dict(data or {}))

    def result(self, metrics: Metrics) -> None:
        self._write("result", metrics=dict(metrics))

    def error(self, code: str, message: str) -> None:
        self._write("error", code=code, message=message)

    def _write(self, kind: str, **fields: Any) -> None:
        self._stream.write(json.dumps({"type": kind, **fields}, allow_nan=False) + "\n")
        self._stream.flush()
