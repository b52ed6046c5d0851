"""A check in a process of its own says what the check says here, and leaves no process behind."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.datasets.apart import PIECE, Check, checking
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
def checked() -> Iterator[tuple[Check, io.BytesIO, io.BytesIO]]:
    report, data = io.BytesIO(), io.BytesIO()
    before = psutil.Process().children()
    with checking(report, data, LIMITS) as check:
        yield check, report, data
    assert not set(psutil.Process().children()) - set(before), "the process has ended with the check"


def newest() -> psutil.Process:
    """The child that was made last: other tests of this process may have some, too."""
    return max(psutil.Process().children(), key=psutil.Process.create_time)


@pytest.mark.parametrize("name", CONTENTS)
def test_it_says_what_the_check_here_says(name: str) -> None:
    content = CONTENTS[name]
    report, data = io.BytesIO(), io.BytesIO()
    expected = validate([content], report, data, LIMITS)
    with checked() as (check, told, made):
        for place in range(0, len(content), 10_000):
            check.write(content[place : place + 10_000])
        found = check.summary()
    assert (found, told.getvalue(), made.getvalue()) == (expected, report.getvalue(), data.getvalue())


def test_a_check_that_is_given_up_leaves_no_process() -> None:
    with checked() as (check, _, _):
        check.write(GOOD)


def test_a_check_that_has_read_enough_may_be_told_of_more() -> None:
    with checked() as (check, _, _):
        child = newest()
        check.write(b"PK\x03\x04 and more" * PIECE)
        until(lambda: child.status() == psutil.STATUS_ZOMBIE)
        check.write(b"and more" * PIECE)
        found = check.summary()
    assert "zip" in found.shown[0].wrong


def test_a_process_that_was_killed_is_told_as_a_problem_of_the_file() -> None:
    with checked() as (check, report, _):
        newest().kill()
        check.write(GOOD)
        found: Summary = check.summary()
    assert (found.problem_count, json.loads(report.getvalue())["wrong"][:17]) == (1, "cannot be checked")


def test_whatever_the_report_cannot_take_is_raised() -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, f"no room for {len(data)} bytes")

    with checking(Full(), io.BytesIO(), LIMITS) as check:
        check.write(b"x\n")
        with pytest.raises(OSError, match="no room"):
            check.summary()


def test_the_process_may_hold_only_so_much() -> None:
    with checked() as (check, _, _):
        child = newest()
        until(lambda: child.rlimit(psutil.RLIMIT_DATA)[0] < 2**30)
        check.summary()
