"""What files come in: whatever the container, the same rows; whatever is broken, a clear end in bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import example, given
from hypothesis import strategies as st

from service.datasets.duplicates import Duplicates
from service.datasets.validation import Limits, Summary, validate

ROWS = [{"problem": f"p{n} é", "solution": "s\n", "answer": None} for n in range(3)]
MOST = 1_000_000


def check(
    content: bytes, size: int = 7, most: int = MOST
) -> tuple[Summary, list[dict[str, Any]], list[dict[str, Any]]]:
    """The summary, the lines to train on and the report of a file that arrives in pieces."""
    report, data = io.BytesIO(), io.BytesIO()
    pieces = (content[place : place + size] for place in range(0, len(content), size))
    summary = validate(pieces, report, data, Limits(100_000, most))
    return summary, *([json.loads(line) for line in file.getvalue().splitlines()] for file in (data, report))


def jsonl(rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def array(rows: Any) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


CONTAINERS: dict[str, Callable[[Any], bytes]] = {
    "json": array,
    "jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "json.gz": lambda rows: gzip.compress(array(rows)),
    "jsonl.zst": lambda rows: zstd.compress(jsonl(rows)),
    "json.zst": lambda rows: zstd.compress(array(rows)),
    "parquet": parquet,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_rows_are_the_same_whatever_they_came_in(name: str) -> None:
    summary, data, report = check(CONTAINERS[name](ROWS))
    assert (summary.container, summary.rows, summary.converted, report) == (name, 3, True, [])
    assert [(row["problem"], row["solution"], row.get("answer")) for row in data] == [
        (row["problem"], row["solution"], None) for row in ROWS
    ]


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_bad_row_is_named_by_its_number_whatever_it_came_in(name: str) -> None:
    _, _, report = check(CONTAINERS[name]([ROWS[0], {"problem": "p", "solution": ""}]))
    assert [(found["line"], found["field"]) for found in report] == [(2, "solution")]


def test_columns_of_parquet_that_are_not_ours_are_not_read_but_slips_are_told() -> None:
    rows = [{"question": "q", "output": "o", "score": float("nan"), "blob": b"x", "anwser": 3}]
    _, _, report = check(parquet(rows))
    assert [found["field"] for found in report] == ["anwser"]
    _, data, report = check(parquet([{**rows[0], "anwser": None, "answer": float("nan")}]))
    assert (data, report) == ([{"problem": "q", "solution": "o"}], [])


def test_conversations_come_out_of_parquet_as_they_went_in() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 1}]
    _, data, report = check(parquet([{"messages": messages}]))
    assert report == []
    assert [
        {key: value for key, value in found.items() if value is not None} for found in data[0]["messages"]
    ] == messages


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_files_behind_each_other_are_one_file(compress: Callable[[bytes], bytes]) -> None:
    parts = [compress(jsonl(ROWS)), compress(jsonl(ROWS[:1]))]
    summary, _, report = check(b"".join(parts))
    assert (summary.rows, report) == (4, [])
    assert check(gzip.compress(jsonl(ROWS)) + b"\0" * 512)[2] == []


@pytest.mark.parametrize(
    ("content", "line", "wrong"),
    [
        (gzip.compress(jsonl(ROWS))[:-9], None, "cut off"),
        (zstd.compress(jsonl(ROWS))[:-1], None, "cut off"),
        (gzip.compress(jsonl(ROWS)) + b"rest", 4, "cannot be decompressed"),
        (b"\x1f\x8b nonsense", 1, "cannot be decompressed"),
        (parquet(ROWS)[:-9], 1, "could not be read from the Parquet file"),
        (b"PAR1", 1, "could not be read from the Parquet file"),
        (gzip.compress(parquet(ROWS)), 1, "Parquet file that was compressed"),
        (gzip.compress(gzip.compress(b"{}")), 1, "gzip within another"),
        (b"PK\x03\x04 and so on", 1, "zip"),
        ('{"problem": "p"}'.encode("utf-16"), 1, "UTF-16"),
        (b"[", 1, "is not JSON"),
        (b'[{"problem": "p", "solution": "s"}', 2, "is not behind a comma"),
        (b'[{"problem": "p", "solution": "s"},]', 2, "is not JSON"),
        (b'[{"problem": "p", "solution": "s"}] {}', 2, "behind the end"),
        (b'[{"problem": "p", "solution": "\xff"}]', 1, "not UTF-8"),
        (b"[" * 50_000, 1, "nested too deeply"),
        (b'[{"problem": "' + b"x" * 100_100, 1, "is longer than 100000"),
    ],
    ids=lambda given: None if not isinstance(given, bytes) else "content",  # what is compressed bears the time
)
def test_what_cannot_be_read_on_ends_there(content: bytes, line: int | None, wrong: str) -> None:
    _, _, report = check(content, 64)
    assert wrong in report[-1]["wrong"]
    assert line in (None, report[-1]["line"])


@pytest.mark.parametrize("name", ["jsonl.gz", "jsonl.zst", "parquet"])
def test_a_bomb_ends_at_the_cap_in_bounded_memory(name: str) -> None:
    rows = [{"problem": "x" * 50_000, "solution": "s"}] * 400
    content = CONTAINERS[name](rows)
    assert len(content) < MOST / 10
    tracemalloc.start()
    summary, data, report = check(content, 2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"passes {MOST} bytes" in report[0]["wrong"]
    assert summary.too_large
    assert summary.rows < 20
    assert peak < 8 * MOST
    del data


def test_nothing_hides_behind_more_blanks_than_a_line_may_have() -> None:
    hidden = b" " * 150_000 + b'{"x": 1}'.ljust(50_000) + b"\n"
    summary, _, (told,) = check(jsonl(ROWS) + hidden + jsonl(ROWS), 50_000)
    assert (summary.rows, told["line"]) == (6, 4)
    assert "longer than 100000 bytes" in told["wrong"]


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_of_files_behind_each_other_there_may_not_be_too_many(compress: Callable[[bytes], bytes]) -> None:
    content = compress(b"") * 50_000
    summary, _, report = check(content, 2**18)
    assert "too many small files" in report[0]["wrong"]
    assert summary.rows == 0
    assert check(compress(jsonl(ROWS)) * 900, 2**18)[2] == []


def test_a_compressed_file_takes_no_more_time_than_its_bytes_allow() -> None:
    report = io.BytesIO()
    content = gzip.compress(b'{"problem": "p", "solution": "s"}\n' * 100_000)
    found = validate([content], report, io.BytesIO(), Limits(100_000, 2**30, seconds=0))
    assert 0 < found.rows < 100_000
    assert "took too long" in json.loads(report.getvalue())["wrong"]
    assert validate([content], report, io.BytesIO(), Limits(100_000, 2**30)).problem_count == 0


def test_a_zstd_file_that_asks_for_a_large_window_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
    stream = zstd.ZstdCompressor(options=options)
    content = stream.compress(jsonl(ROWS)) + stream.flush()
    assert "memory" in check(content)[2][0]["wrong"]


TEXT = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text)
PROBLEMS = st.lists(st.builds(lambda p, s: {"problem": p, "solution": s}, TEXT, TEXT), min_size=1, max_size=5)


@given(PROBLEMS, st.sampled_from(sorted(set(CONTAINERS) - {"parquet"})), st.integers(1, 40))
@example([{"problem": "0", "solution": "0"}], "json.gz", 1)  # whose pieces decompress to nothing now and then
def test_pieces_of_any_size_are_the_same_file(rows: list[dict[str, str]], name: str, size: int) -> None:
    summary, data, report = check(CONTAINERS[name](rows), size)
    assert (data, report) == (rows, [])
    assert summary.duplicates == len(rows) - len({json.dumps(row) for row in rows})


BROKEN = st.one_of(
    st.binary(max_size=60).map(lambda tail: b"\x1f\x8b\x08" + tail),
    st.binary(max_size=60).map(lambda tail: b"\x28\xb5\x2f\xfd" + tail),
    st.binary(max_size=60).map(lambda tail: b"[" + tail),
    st.text(alphabet='[]{},:" ab01.e-\\', max_size=40).map(lambda tail: b"[" + tail.encode()),
    st.binary(max_size=60).map(zlib.compress),
)


@given(BROKEN, st.integers(1, 40))
def test_no_container_breaks_the_validator(content: bytes, size: int) -> None:
    summary, _, report = check(content, size)
    assert len(report) == summary.problem_count
    assert report or summary.rows


@given(st.text(alphabet='[]{},:" a1.e-\\n', max_size=30))
def test_an_array_is_taken_where_json_takes_it(inner: str) -> None:
    content = f"[{inner}".encode()
    try:
        elements: Any = json.loads(content)
    except ValueError:
        elements = None
    _, _, report = check(content, 3)
    cannot = [found for found in report if "none of the known fields" not in found["wrong"]]
    if elements is None:
        assert cannot
    elif elements and all(isinstance(element, dict) for element in elements):
        assert not cannot


# ---- duplicates


@given(st.lists(st.integers(0, 20)))
def test_duplicates_are_lines_equal_to_an_earlier_one(numbers: list[int]) -> None:
    found = Duplicates()
    for number in numbers:
        found.add(b"%d" % number)
    assert found.count == len(numbers) - len(set(numbers))


def test_many_distinct_lines_are_counted_from_a_sample_in_bounded_memory() -> None:
    found = Duplicates(most=1000)
    for number in _with_repeats(50_000):
        found.add(b"%d" % number)
    assert len(found._repeats) <= 1000
    assert 35_000 < found.count < 65_000


def _with_repeats(count: int) -> Iterator[int]:
    for number in range(count):
        yield from (number, number)
