"""A training file, checked line by line in bounded memory. Every bad line is told, not only the first."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any

from allo_engine.pipeline import Format
from service.datasets.checks import kind
from service.datasets.formats import EXPECTED, SHAPES, faults_of, shape_of

SHOWN = 100
"""Problems kept for the answer; the report has them all."""

MAX_PROBLEMS = 100_000
"""After so many the file is not read on: a report must not outgrow the file that it is about."""

REMEMBERED = 10_000
"""Lines without a solution that are remembered by number."""


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with a line (counted from 1), and what would be right."""

    line: int
    field: str | None
    wrong: str
    right: str

    def __str__(self) -> str:
        field = f"field {self.field} " if self.field else "the line "
        return f"line {self.line}: {field}{self.wrong}; it takes {self.right}"


@dataclass(frozen=True)
class Summary:
    """What a file holds. It can be used where `problem_count` is 0."""

    format: Format | None
    rows: int
    lines_without_solution: tuple[int, ...]
    problem_count: int
    shown: tuple[LineProblem, ...]


class BadLine(Exception):
    """A line that is no JSON object of ours."""

    def __init__(self, wrong: str, right: str, field: str | None = None) -> None:
        super().__init__(wrong, right, field)
        self.wrong, self.right, self.field = wrong, right, field


def validate(stream: IO[bytes], report: IO[bytes], max_line_bytes: int) -> Summary:
    """Reads a JSONL file to its end and writes every problem to `report`, a JSON object a line."""
    validation = _Validation()
    for number, line in _lines(stream, max_line_bytes):
        for problem in validation.problems(number, line, max_line_bytes):
            _tell(problem, validation, report)
        if validation.problem_count >= MAX_PROBLEMS:
            right = "a file of one of the known formats"
            _tell(
                LineProblem(number, None, f"is the last one read, after {MAX_PROBLEMS} problems", right),
                validation,
                report,
            )
            break
    if not validation.rows and not validation.problem_count:
        _tell(LineProblem(1, None, "is empty: the file has no rows", EXPECTED), validation, report)
    return validation.summary()


def _tell(problem: LineProblem, validation: _Validation, report: IO[bytes]) -> None:
    validation.count(problem)
    report.write(json.dumps(asdict(problem)).encode() + b"\n")


class _Validation:
    """What is known after some lines: the format, once one line has shown it, and the counts."""

    def __init__(self) -> None:
        self.format: Format | None = None
        self.first_line = self.rows = self.problem_count = 0
        self.without_solution: list[int] = []
        self.shown: list[LineProblem] = []

    def problems(self, number: int, line: bytes, max_line_bytes: int) -> Iterator[LineProblem]:
        try:
            row = _parse(line, max_line_bytes)
            shape = self._shape(number, row)
        except BadLine as error:
            yield LineProblem(number, error.field, error.wrong, error.right)
            return
        self.rows += 1
        if self.format == "preferences" and not row.get("solution") and len(self.without_solution) < REMEMBERED:
            self.without_solution.append(number)
        for field, fault in faults_of(row, shape):
            yield LineProblem(number, field, fault.wrong, fault.right)

    def count(self, problem: LineProblem) -> None:
        self.problem_count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(problem)

    def summary(self) -> Summary:
        lines = tuple(self.without_solution)
        return Summary(self.format, self.rows, lines, self.problem_count, tuple(self.shown))

    def _shape(self, number: int, row: dict[str, Any]) -> int:
        """The line's shape, held against the format of the first line that showed one."""
        shape = shape_of(row)
        if shape is None:
            raise BadLine("has none of the known fields", EXPECTED)
        found = SHAPES[shape][0]
        if self.format is None:
            self.format, self.first_line = found, number
        if found != self.format:
            raise BadLine(f"holds {found}", f"{self.format}, as line {self.first_line} does: one file, one format")
        return shape


def _lines(stream: IO[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, without blank ones and without a byte order mark. A line that is too long comes cut, one byte
    longer than allowed."""
    number = 0
    while line := stream.readline(max_line_bytes + 1):
        number += 1
        rest = line
        while len(rest) > max_line_bytes and not rest.endswith(b"\n"):
            rest = stream.readline(max_line_bytes + 1)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield number, line


def _parse(line: bytes, max_line_bytes: int) -> dict[str, Any]:
    if len(line.rstrip(b"\r\n")) > max_line_bytes:
        raise BadLine(f"is longer than {max_line_bytes} bytes", "a shorter line, or a larger ALLO_MAX_LINE_BYTES")
    right = "one JSON object a line"
    try:
        row = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadLine(f"is not UTF-8 at its byte {error.start + 1}", "UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadLine(f"is not JSON at its character {error.pos + 1}: {error.msg}", right) from None
    except RecursionError:
        raise BadLine("is nested too deeply", right) from None
    except ValueError:  # a number of more digits than Python reads
        raise BadLine("holds a number that is too long", "numbers of fewer digits, or texts") from None
    if not isinstance(row, dict):
        raise BadLine(f"is {kind(row)}", right)
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that comes twice is refused, because readers disagree on which one counts."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadLine("is given twice", "each field once", _printable(key))
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise BadLine(f"holds {name}, which is not JSON", "a finite number, null, or a text")


def _printable(key: str) -> str:
    return key[:60].encode("ascii", "backslashreplace").decode()
