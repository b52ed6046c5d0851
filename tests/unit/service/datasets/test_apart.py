"""A check in a process of its own says what the check says here, and leaves no process behind."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.datasets.apart import Check, checking
from service.datasets.validation import Limits, Summary, validate
from tests.waiting import until

LIMITS = Limits(100_000, 1_000_000)
GOOD = b"".join(b'{"problem": "p%d", "solution": "s"}\n' % number for number in range(2_000))
ALPACA = b'{"instruction": "i", "output": "o"}\n' * 3
PREFERENCES = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n' * 2


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"problem": "p", "solution": "s"}, {"problem": "p", "solution": ""}]), file)
    return file.getvalue()


CONTENTS = {
    "good": GOOD,
    "bad lines": GOOD + b'{"problem": 3}\nnonsense\n' * 150,
    "converted": ALPACA,
    "compressed": gzip.compress(PREFERENCES),
    "cut": gzip.compress(GOOD)[:-20],
    "an array": json.dumps([{"problem": "p", "solution": "s"}] * 3).encode(),
    "Parquet": parquet(),
    "empty": b"",
}


@contextmanager
def checked(path: Path, content: bytes) -> Iterator[tuple[Check, io.BytesIO, io.BytesIO]]:
    path.write_bytes(content)
    report, data = io.BytesIO(), io.BytesIO()
    before = psutil.Process().children()
    with checking(path, report, data, LIMITS) as check:
        yield check, report, data
    assert not set(psutil.Process().children()) - set(before), "the process has ended with the check"


def newest() -> psutil.Process:
    """The child that was made last: other tests of this process may have some, too."""
    return max(psutil.Process().children(), key=psutil.Process.create_time)


@pytest.mark.parametrize("name", CONTENTS)
def test_it_says_what_the_check_here_says(name: str, tmp_path: Path) -> None:
    content = CONTENTS[name]
    report, data = io.BytesIO(), io.BytesIO()
    expected = validate([content], report, data, LIMITS)
    with checked(tmp_path / "file", content) as (check, told, made):
        found = check.summary(len(content))
    assert (found, told.getvalue(), made.getvalue()) == (expected, report.getvalue(), data.getvalue())


def test_it_reads_a_file_that_grows_only_as_far_as_it_is_told(tmp_path: Path) -> None:
    with checked(tmp_path / "file", b"") as (check, _, _):
        with (tmp_path / "file").open("ab", buffering=0) as file:
            for place in range(0, len(GOOD), 10_000):
                file.write(GOOD[place : place + 10_000])
                check.may_read(min(place + 10_000, len(GOOD)))
            file.write(b"nonsense that is not told")
        found = check.summary(len(GOOD))
    assert (found.rows, found.problem_count) == (2_000, 0)


def test_a_check_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    with checked(tmp_path / "file", GOOD) as (check, _, _):
        check.may_read(len(GOOD))


def test_a_check_that_has_read_enough_may_be_told_of_more(tmp_path: Path) -> None:
    with checked(tmp_path / "file", b"PK\x03\x04 and more") as (check, _, _):
        child = newest()
        check.may_read(10)
        until(lambda: child.status() == psutil.STATUS_ZOMBIE)
        check.may_read(11)
        found = check.summary(16)
    assert "zip" in found.shown[0].wrong


def test_a_process_that_was_killed_is_told_as_a_problem_of_the_file(tmp_path: Path) -> None:
    with checked(tmp_path / "file", GOOD) as (check, report, _):
        child = newest()
        child.kill()
        found: Summary = check.summary(len(GOOD))
    assert (found.problem_count, json.loads(report.getvalue())["wrong"][:17]) == (1, "cannot be checked")


def test_whatever_the_report_cannot_take_is_raised(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, f"no room for {len(data)} bytes")

    (tmp_path / "file").write_bytes(b"x\n")
    with checking(tmp_path / "file", Full(), io.BytesIO(), LIMITS) as check, pytest.raises(OSError, match="no room"):
        check.summary(2)


def test_the_process_may_hold_only_so_much(tmp_path: Path) -> None:
    with checked(tmp_path / "file", b"") as (check, _, _):
        child = newest()
        until(lambda: child.rlimit(psutil.RLIMIT_DATA)[0] < 2**30)
        check.summary(0)
