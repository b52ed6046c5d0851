"""Training files: every format, every way to be wrong, and bounded memory."""

from __future__ import annotations

import io
import json
import tracemalloc
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jiter import from_json

from service.datasets import formats, parsing, validation
from service.datasets.validation import Limits, Summary, validate

MAX = 100_000


def check(content: bytes, max_line_bytes: int = MAX) -> tuple[Summary, list[dict[str, Any]]]:
    """The summary, and the report's lines."""
    report = io.BytesIO()
    summary = validate([content], report, io.BytesIO(), Limits(max_line_bytes, 10 * MAX))
    lines = [json.loads(line) for line in report.getvalue().splitlines()]
    assert len(lines) == summary.problem_count
    return summary, lines


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
DEVELOPER = {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": " kind"}]}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CALLING_IN_TRL = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
TOLD = {"role": "tool", "tool_call_id": "1", "content": "2"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
OPENAI = {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]}
GOOD: dict[str, list[dict[str, Any]]] = {
    "problems": [
        {"problem": "p", "solution": "s"},
        {"question": "p", "output": "s", "answer": 3},
        {"input": "p", "solution": "s", "answer": None, "level": [1]},
        {"problem": None, "question": "p", "solution": "s"},
    ],
    "preferences": [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": "r", "solution": "s"},
        OPENAI,
        {**OPENAI, "input": {"messages": [USER], "tools": TOOLS}, "preferred_output": [CALLING]},
    ],
    "chats": [
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT]},
        {"messages": [DEVELOPER, USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1, "name": "x"}]},
        {"messages": [USER, CALLING, TOLD, ASSISTANT], "tools": TOOLS, "parallel_tool_calls": False},
        {"messages": [USER, CALLING_IN_TRL, {"role": "tool", "name": "add", "content": "2"}, ASSISTANT], "tools": None},
    ],
    "corrections": [{"problem": "p", "solution": "s", "prediction": "x", "correction": "y"}],
}


@pytest.mark.parametrize("format", GOOD)
def test_each_format_is_told_by_its_first_line(format: str) -> None:
    summary, report = check(lines(*GOOD[format]))
    assert (summary.format, summary.rows, report) == (format, len(GOOD[format]), [])


def test_lines_without_a_solution_are_known_by_number() -> None:
    summary, _ = check(lines(*GOOD["preferences"]))
    assert summary.lines_without_solution == (1, 3, 4)
    assert check(lines(*GOOD["problems"]))[0].lines_without_solution == ()


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_fine() -> None:
    row = json.dumps(GOOD["problems"][0]).encode()
    summary, _ = check(b"\xef\xbb\xbf" + row + b"\r\n\r\n   \n" + row)
    assert (summary.rows, summary.problem_count) == (2, 0)


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_refused(content: bytes) -> None:
    assert "has no rows" in check(content)[1][0]["wrong"]


@pytest.mark.parametrize(
    ("line", "field", "wrong"),
    [
        (b"nonsense", None, "is not JSON at its character 1"),
        (b'{"problem": "p"', None, "is not JSON"),
        (b'["problem"]', None, "is a list"),
        (b'"problem"', None, "is a text"),
        (b"null", None, "is null"),
        (b"\xff\xfe{", None, "is not UTF-8 at its byte 1"),
        (b"[" * 50_000, None, "is nested too deeply"),
        (b'{"problem": NaN, "solution": "s"}', None, "holds NaN"),
        (b'{"x": -Infinity}', None, "holds -Infinity"),
        (b'{"x": ' + b"1" * 5000 + b"}", None, "number that is too long"),
        (b'{"problem": "p", "solution": "s", "problem": "q"}', "problem", "is given twice"),
        (b'{"a": {"b": 1, "b": 2}}', "b", "is given twice"),
        (b'{"text": "p"}', None, "has none of the known fields"),
        (b'{"problem": "p"}', "solution", "is missing"),
        (b'{"solution": "s"}', "problem", "is missing"),
        (b'{"problem": "p", "input": "q", "solution": "s"}', "problem", "beside 'input'"),
        (b'{"problem": "p", "solution": 3}', "solution", "is a number"),
        (b'{"problem": "  ", "solution": "s"}', "problem", "is empty"),
        (b'{"problem": "\\u0000", "solution": "s"}', "problem", "NUL"),
        (b'{"problem": "\\ud800", "solution": "s"}', "problem", "surrogate"),
        (b'{"problem": "p", "solution": "s", "x": [["\\udc00"]]}', "x", "surrogate"),
        (b'{"problem": "p\x00", "solution": "s"}', None, "is not JSON"),
        (b'{"problem": "p", "solution": "s", "answer": true}', "answer", "is true or false"),
        (b'{"problem": "p", "solution": "s", "answer": 1e999}', "answer", "too large"),
        (b'{"messages": [{"role": "user", "content": "q"}]}', None, "holds chats"),
        (b'{"question": "p", "answer": "s #### 1"}', None, "holds GSM8K"),
        (b'{"problem": "p", "solution": "s", "anwser": 3}', "anwser", "no field of ours"),
        (b'{"problem": "p", "solution": "s", "Answer": 3}', "Answer", "no field of ours"),
    ],
)
def test_a_bad_line_is_named_with_its_field_and_fault(line: bytes, field: str | None, wrong: str) -> None:
    summary, report = check(lines(GOOD["problems"][0]) + line + b"\n" + lines(GOOD["problems"][0]))
    assert [(found["line"], found["field"]) for found in report] == [(2, field)]
    assert wrong in report[0]["wrong"]
    assert report[0]["right"]
    assert summary.format == "problems"


@pytest.mark.parametrize(
    ("row", "field", "wrong"),
    [
        ({"messages": []}, "messages", "is an empty list"),
        ({"messages": "x"}, "messages", "is a text"),
        ({"messages": [USER, 3]}, "messages[1]", "is a number"),
        ({"messages": [USER, {"role": "robot", "content": "a"}]}, "messages[1].role", "is 'robot'"),
        ({"messages": [USER, {"content": "a"}]}, "messages[1].role", "is missing"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "is missing"),
        ({"messages": [USER, {"role": "assistant", "content": [1]}]}, "messages[1].content[0]", "is a number"),
        ({"messages": [USER]}, "messages", "no assistant's answer"),
        ({"messages": [ASSISTANT, USER]}, "messages[0].role", "is 'assistant'"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "messages", "to learn from"),
        ({"messages": [USER, {**ASSISTANT, "weight": 0.5}]}, "messages[1].weight", "is 0.5"),
        ({"messages": [USER, {**ASSISTANT, "weight": True}]}, "messages[1].weight", "is True"),
        ({"messages": [{**USER, "weight": 1}, ASSISTANT]}, "messages[0].weight", "not the assistant's"),
        ({"messages": [{"role": "function", "content": "x"}, ASSISTANT]}, "messages[0].role", "is 'function'"),
        ({"messages": [USER, {**CALLING, "tool_calls": []}]}, "messages[1].tool_calls", "is an empty list"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content", "is null"),
        ({"messages": [USER, {**CALLING, "tool_calls": "x"}]}, "messages[1].tool_calls", "is a text"),
        ({"messages": [USER, {**CALLING, "tool_calls": [{"id": "1"}]}]}, "messages[1].tool_calls[0]", "no call"),
        ({"messages": [USER, {**ASSISTANT, "function_call": {}}]}, "messages[1].function_call", "old form"),
        ({"messages": [USER, {**TOLD, "tool_call_id": 3}, ASSISTANT]}, "messages[1].tool_call_id", "is a number"),
        ({"messages": [USER, {**ASSISTANT, "wieght": 0}]}, "messages[1].wieght", "no field of a message"),
        ({"messages": [{"role": {}, "content": "q"}, ASSISTANT]}, "messages[0].role", "is an object"),
        ({"messages": [USER, ASSISTANT], "tools": [{"name": "add"}]}, "tools[0]", "no description"),
        ({"messages": [USER, ASSISTANT], "functions": [{"name": "add"}]}, "functions", "old form"),
        ({**OPENAI, "input": {"messages": [USER], "tools": 3}}, "input.tools", "is a number"),
        (
            {"messages": [{**USER, "content": [{"type": "image_url"}]}, ASSISTANT]},
            "messages[0].content[0].type",
            "image",
        ),
        ({"prompt": "p", "chosen": "c", "rejected": None}, "rejected", "is null"),
        ({"prompt": "p", "chosen": [USER], "rejected": "r"}, "chosen[0].role", "is 'user'"),
        ({"prompt": "p", "rejected": "r"}, "chosen", "is missing"),
        ({**OPENAI, "input": [USER]}, "input", "without messages"),
        ({**OPENAI, "input": {"messages": [3]}}, "input.messages[0]", "is a number"),
        ({**OPENAI, "preferred_output": "x"}, "preferred_output", "is a text"),
        ({"problem": "p", "solution": "s", "prediction": "x"}, "correction", "is missing"),
    ],
)
def test_nested_faults_are_named_by_their_path(row: Any, field: str, wrong: str) -> None:
    _, report = check(lines(row))
    assert [found["field"] for found in report] == [field]
    assert wrong in report[0]["wrong"]


@pytest.mark.parametrize("arguments", [None, [], "", "x", "[1]", "[" * 50_000])
def test_the_arguments_of_a_call_are_a_json_object(arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    (found,) = check(lines({"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}), 200_000)[1]
    assert found["field"] == "messages[1].tool_calls[0].function.arguments"


def test_a_line_too_long_is_passed_over_and_the_next_ones_keep_their_numbers() -> None:
    long = lines({"problem": "x" * 5000, "solution": "s"})
    summary, report = check(lines(GOOD["problems"][0]) + long + lines({"problem": 1, "solution": "s"}), 1000)
    assert [found["line"] for found in report] == [2, 3]
    assert "longer than 1000 bytes" in report[0]["wrong"]
    assert summary.rows == 2


def test_a_line_of_a_million_faults_tells_twenty() -> None:
    summary, report = check(lines({"messages": [0] * 1_000_000}), 2**22)
    assert len(report) == summary.problem_count == 21
    assert "more than these 20" in report[-1]["wrong"]


@pytest.mark.parametrize(
    ("problems", "size"), [(50, validation.MAX_REPORT_BYTES), (validation.MAX_PROBLEMS, 5_000)], ids=["count", "bytes"]
)
def test_a_report_ends_where_it_becomes_too_long(monkeypatch: pytest.MonkeyPatch, problems: int, size: int) -> None:
    monkeypatch.setattr(validation, "MAX_PROBLEMS", problems)
    monkeypatch.setattr(validation, "MAX_REPORT_BYTES", size)
    _, report = check(b"x\n" * 1000)
    assert len(report) < 100
    assert "where reading stopped" in report[-1]["wrong"]
    assert report[-1]["line"] == report[-2]["line"]


def test_columns_of_other_names_are_ignored() -> None:
    row = {"problem": "p", "solution": "s", "answer": 3, "answers": [3], "level": 1, "x" * 50_000: None}
    assert check(lines(row))[1] == []


def test_all_bad_lines_are_in_the_report_and_the_first_hundred_at_hand() -> None:
    summary, report = check(b"x\n" * 250)
    assert [found["line"] for found in report] == list(range(1, 251))
    assert len(summary.shown) == 100


def test_memory_stays_bounded_whatever_the_file() -> None:
    pieces = (b"x" * 30_000 for _ in range(1000))
    tracemalloc.start()
    with open("/dev/null", "wb") as null:  # noqa: PTH123 - a path has no better way to a device
        validate(chain(pieces, [b"\n" + b"y\n" * 2_000]), null, null, Limits(10_000, MAX))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted(formats.KNOWN)
ROWS = st.dictionaries(st.sampled_from(NAMES), JSON | st.just([USER, ASSISTANT]), max_size=5)
LINES = st.one_of(
    st.binary(max_size=40), ROWS.map(lambda row: json.dumps(row).encode()), JSON.map(json.dumps).map(str.encode)
)


@given(st.lists(LINES, max_size=8))
def test_no_file_breaks_the_validator(parts: list[bytes]) -> None:
    content = b"\n".join(parts)
    summary, report = check(content)
    count = content.count(b"\n") + content.count(b",") + 2  # lines, or elements and what comes behind them
    assert all(1 <= found["line"] <= count and found["wrong"] and found["right"] for found in report)
    assert [found["line"] for found in report] == sorted(found["line"] for found in report)
    assert summary.problem_count or summary.rows


TEXT = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": st.text() | st.none()}
    ),
    max_size=3,
)


@given(st.sampled_from([field for shape in formats.SHAPES for field in shape.fields]), JSON | st.text() | MESSAGES)
def test_what_is_plain_has_no_fault(field: formats.Field, value: Any) -> None:
    assert not field.is_plain(value) or not list(field.check(value))


PARTS = [*'{}[]:,"\\', r"\u0000", r"\ud800", "1", "-0", "1e5", "1e999", "NaN", "null", "é", " ", "\x01"]
FRAGMENTS = st.sampled_from(PARTS)


@given(st.lists(FRAGMENTS, max_size=12).map("".join) | JSON.map(json.dumps))
def test_whatever_the_quick_parser_takes_the_strict_one_takes_for_the_same(inner: str) -> None:
    line = f'{{"a": {inner}}}'.encode()
    try:
        quick = from_json(line, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError:
        return
    assert repr(parsing._slowly(line)) == repr(quick)


NAMES = st.sampled_from(["problem", "question", "solution", "answer", "problme", "level"])
VALUES = st.sampled_from(["x", "", " ", "a\0b", 3, None, ["x"]])
PROBLEM = formats.OURS["problems"]


@given(st.lists(st.lists(st.dictionaries(NAMES, VALUES), min_size=1, max_size=2), max_size=4))
def test_what_is_quick_to_ask_of_a_line_finds_what_all_checks_find(drawn: list[list[dict[str, Any]]]) -> None:
    rows = [{"problem": "p", "solution": "s"}, *chain.from_iterable(drawn * 2)]
    rows = [row for row in rows if formats.shape_of(row) is PROBLEM]
    wanted = [
        (n, field, fault.wrong) for n, row in enumerate(rows, 1) for field, fault in formats.faults_of(row, PROBLEM)
    ]
    assert [(told["line"], told["field"], told["wrong"]) for told in check(lines(*rows))[1]] == wanted


@given(st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT | st.integers()), min_size=1, max_size=5))
def test_whatever_is_valid_is_accepted(rows: list[tuple[str, str, Any]]) -> None:
    content = lines(
        *({"problem": problem, "solution": solution, "answer": answer} for problem, solution, answer in rows)
    )
    summary, report = check(content)
    assert (summary.format, summary.rows, report) == ("problems", len(rows), [])


@given(st.sampled_from(sorted(GOOD)), st.sampled_from(sorted(GOOD)))
def test_a_file_is_of_one_format(first: str, second: str) -> None:
    summary, report = check(lines(GOOD[first][0], GOOD[second][0]))
    assert summary.format == first
    assert bool(report) == (first != second)
