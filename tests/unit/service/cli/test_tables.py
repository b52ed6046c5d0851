"""Tables for people: what is typed again is whole, however narrow the terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from service.cli.terminal import listing


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_an_id_is_whole_on_any_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    job = "ftjob-" + "0123456789abcdefghijklmnop"
    table = listing("job", "status", "made", "model", "method", "stages")
    table.add_row(job, "succeeded", "2026-11-26 13:01", "smollm2", "supervised", "1 of 1")
    Console(width=width).print(table)
    said = capsys.readouterr().out
    assert job in said
    assert "…" not in said
