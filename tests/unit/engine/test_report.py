"""What a training tells of its pace and memory."""

from __future__ import annotations

import io
import json
import time

from allo_engine.report import Report


def told(stream: io.StringIO) -> list[dict[str, float]]:
    return [json.loads(line)["metrics"] for line in stream.getvalue().splitlines()]


def test_steps_with_figures_say_how_fast_they_were_what_is_held_and_how_busy_the_device_was() -> None:
    stream = io.StringIO()
    report, began = Report(stream), time.process_time()
    report.progress(100, 1000, {"loss": 1.0})
    while time.process_time() - began < 0.02:
        pass  # work
    report.progress(250, 1000, {"loss": 1.0})
    first, second = told(stream)
    assert "tokens_per_second" not in first, "there is nothing to compare the first step with"
    assert second["tokens_per_second"] > 0
    assert 0 < second["device_use"] <= 1
    assert second["memory_bytes"] > 2**20


def test_progress_without_figures_has_none() -> None:
    stream = io.StringIO()
    Report(stream).progress(1000, 1000)
    assert told(stream) == [{}]
