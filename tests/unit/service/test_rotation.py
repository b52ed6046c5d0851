"""Logs stay within their size, and nothing of them is lost before its time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from service.rotation import EARLIER, Logs, Tidied
from tests.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def logs(tmp_path: Path, clock: Clock) -> Logs:
    for name in ("logs", "runs"):
        (tmp_path / name).mkdir()
    return Logs(tmp_path / "logs", tmp_path / "runs", largest=1000, total=10_000, seconds=100, clock=clock)


def write(logs: Logs, name: str, size: int, at: float) -> Path:
    path = logs.folder / name
    path.write_bytes(b"x" * size)
    os.utime(path, (at, at))
    return path


def test_a_log_is_emptied_where_it_lies_and_its_writer_goes_on(logs: Logs) -> None:
    logs = replace(logs, total=10**9)
    program = "for line in range(20_000): print(f'line {line:05}', flush=True)\ninput()\nprint('the last')"
    whole, seen = logs.folder / "api.log.1", b""
    with (logs.folder / "api.log").open("ab") as log:
        writer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=log)
    with writer:
        while not seen:
            if logs.look().rotated:  # what is written while it is emptied may be lost
                seen += whole.read_bytes()
        writer.communicate(b"\n")
    seen += (logs.folder / "api.log").read_bytes()
    assert seen.startswith(b"line 00000\nline 00001\n")
    assert seen.endswith(b"the last\n")
    assert b"\0" not in seen
    assert len(list(logs.folder.iterdir())) <= 1 + EARLIER


def test_a_small_log_stays_as_it_is_and_of_a_large_one_four_copies_stay(logs: Logs, clock: Clock) -> None:
    write(logs, "worker.log", 1000, clock.now)
    assert logs.look() == Tidied(0, 0)
    for size in range(1001, 1001 + EARLIER + 2):
        write(logs, "api.log", size, clock.now)
        assert logs.look() == Tidied(1, 0)
    sizes = {path.name: path.stat().st_size for path in logs.folder.glob("api.log*")}
    newest = 1001 + EARLIER + 1
    assert sizes == {"api.log": 0} | {f"api.log.{n}": newest + 1 - n for n in range(1, EARLIER + 1)}


def test_what_is_old_goes_unless_it_is_written_to(logs: Logs, clock: Clock) -> None:
    old, young = clock.now - 100, clock.now - 99
    for name, at in (("api.log", old), ("api.log.1", old), ("stage-a.1.log", old), ("stage-b.7.log", young)):
        write(logs, name, 10, at)
    write(logs, "stage-c.2.log", 10, old)
    (logs.runs / "stage-c.2").mkdir()
    assert logs.look() == Tidied(0, 2)
    assert {path.name for path in logs.folder.iterdir()} == {"api.log", "stage-b.7.log", "stage-c.2.log"}


def test_the_oldest_go_while_there_are_too_many(logs: Logs, clock: Clock) -> None:
    for number in range(12):
        write(logs, f"stage-{number}.1.log", 990, clock.now - 50 + number)
    assert logs.look().removed == 2
    assert not (logs.folder / "stage-1.1.log").exists()
    assert (logs.folder / "stage-2.1.log").exists()
