"""A training file, checked in one pass and bounded memory while it arrives. Every bad line is told, not only the first.

What is not JSON lines of a format of ours becomes that on the way, as a second content: jobs read it, and the file
stays as it was sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from service.datasets.containers import Limits, opened
from service.datasets.duplicates import Duplicates
from service.datasets.formats import EXPECTED, OURS, Plain, Shape, expected, faults_of, quick_checks, shape_of
from service.datasets.parsing import BadLine, TooMuch, parse

if TYPE_CHECKING:  # a process that checks one file need not load the engine's settings
    from allo_engine.pipeline import Format

__all__ = ["Limits", "LineProblem", "Sink", "Summary", "validate"]

SHOWN = 100
"""Problems kept for the answer; the report has them all."""

MOST_OF_A_LINE = 20
"""Problems that are told of one line: it may have a million."""

MAX_PROBLEMS, MAX_REPORT_BYTES = 100_000, 16 * 2**20
"""Past either the file is not read on: a report must not outgrow the file that it is about."""

REMEMBERED = 10_000
"""Lines without a solution that are remembered by number."""


class Sink(Protocol):
    """What takes bytes."""

    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True)
class LineProblem:
    """What is wrong with a line (counted from 1; an element, or a row of Parquet), and what would be right."""

    line: int
    field: str | None
    wrong: str
    right: str

    def __str__(self) -> str:
        field = f"field {self.field} " if self.field else "the line "
        return f"line {self.line}: {field}{self.wrong}; it takes {self.right}"


@dataclass(frozen=True)
class Summary:
    """What a file holds. It can be used where `problem_count` is 0.

    `form` is how its lines were written (a name of formats.SHAPES), `container` what they came in; `converted` says
    that the lines to train on are those that were written to `data`. `duplicates` are lines equal to an earlier one.
    `too_large`: it is compressed, or Parquet, and more than is taken.
    """

    format: Format | None
    form: str | None
    container: str
    converted: bool
    rows: int
    duplicates: int
    lines_without_solution: tuple[int, ...]
    problem_count: int
    shown: tuple[LineProblem, ...]
    too_large: bool = False


def validate(chunks: Iterable[bytes], report: Sink, data: Sink, limits: Limits) -> Summary:
    """Reads a file, and writes every problem to `report`, a JSON object a line, and to `data` the lines to train on
    where they are not the file itself. Of a file with too many problems some chunks may be left."""
    pass_ = _Pass(report, data, limits)
    number = 0
    try:
        pass_.container, rows = opened(chunks, limits)
        with closing(rows):
            for number, line in rows:
                pass_.read(number, line)
                if pass_.problem_count and pass_.has_enough:
                    raise BadLine(
                        "is where reading stopped, after too many problems", "a file of one of the known forms"
                    )
    except BadLine as error:  # of the container: it cannot be read on
        pass_.tell(LineProblem(number + (not pass_.has_enough), error.field, error.wrong, error.right))
        pass_.too_large = isinstance(error, TooMuch)
    if not pass_.rows and not pass_.problem_count:
        pass_.tell(LineProblem(1, None, "is empty: the file has no rows", EXPECTED))
    return pass_.summary()


class _Pass:
    """What is known after some lines: the form, once one line has shown it, and the counts."""

    def __init__(self, report: Sink, data: Sink, limits: Limits) -> None:
        self._report, self._data, self._longest = report, data, limits.line_bytes
        self._shape: Shape | None = None
        self._names: Set[str] = frozenset()
        self._quick: Plain | None = None
        self._converts = False
        self._duplicates = Duplicates()
        self._first_line = self._report_bytes = 0
        self._without_solution: list[int] = []
        self._shown: list[LineProblem] = []
        self.container = "jsonl"
        self.rows = self.problem_count = 0
        self.too_large = False

    @property
    def has_enough(self) -> bool:
        return self.problem_count >= MAX_PROBLEMS or self._report_bytes >= MAX_REPORT_BYTES

    def read(self, number: int, line: bytes) -> None:
        """Checks a line, and passes it on."""
        try:
            row = parse(line, self._longest)
            plain = self._is_plain(row)
            shape = plain or self._known(row) or self._held(number, row)
            self.rows += 1
            self._duplicates.add(line)
            problems = () if plain else _problems(number, row, shape)
            if shape.format == "preferences" and not row.get("solution") and len(self._without_solution) < REMEMBERED:
                self._without_solution.append(number)
            for problem in problems:
                self.tell(problem)
            if self._converts and not problems:
                self._pass_on(row, shape, line)
        except BadLine as error:
            self.tell(LineProblem(number, error.field, error.wrong, error.right))

    def tell(self, problem: LineProblem) -> None:
        """Counts and reports a problem."""
        self.problem_count += 1
        self._report_bytes += self._report.write(json.dumps(asdict(problem)).encode() + b"\n")
        if len(self._shown) < SHOWN:
            self._shown.append(problem)

    def summary(self) -> Summary:
        shape = self._shape
        return Summary(
            format=None if shape is None else shape.format,
            form=None if shape is None else shape.name,
            container=self.container,
            converted=self._converts,
            rows=self.rows,
            duplicates=self._duplicates.count,
            lines_without_solution=tuple(self._without_solution),
            problem_count=self.problem_count,
            shown=tuple(self._shown),
            too_large=self.too_large,
        )

    def _known(self, row: dict[str, Any]) -> Shape | None:
        """The form of a line with the names of an earlier one: whatever has the very same has the same form."""
        return self._shape if row.keys() == self._names and None not in row.values() else None

    def _is_plain(self, row: dict[str, Any]) -> Shape | None:
        """The form of a line of known names with which nothing is wrong; most are plain, and this is quick to ask."""
        if self._quick is None or row.keys() != self._names:
            return None
        for name, holds in self._quick:
            if not holds(row[name]):
                return None
        return self._shape

    def _held(self, number: int, row: dict[str, Any]) -> Shape:
        """The line's form, held against that of the first line that showed one."""
        shape = shape_of(row)
        if shape is None:
            raise BadLine("has none of the known fields", expected(row))
        if self._shape is None:
            self._shape, self._first_line = shape, number
            self._converts = shape.convert is not None or self.container != "jsonl"
        if shape is self._shape:
            self._names, self._quick = frozenset(row), quick_checks(row, shape)
            return shape
        if shape.format != self._shape.format or (shape.convert and not self._converts):
            right = f"{self._shape.name}, as line {self._first_line} does: one file, one format"
            raise BadLine(f"holds {shape.name}", right)
        return shape

    def _pass_on(self, row: dict[str, Any], shape: Shape, line: bytes) -> None:
        """Writes the line as one of our format. What a conversion made is checked like a line of that format."""
        if shape.convert is None and self.container.startswith("jsonl"):
            self._data.write(line.rstrip() + b"\n")
            return
        if shape.convert:
            row, shape = shape.convert(shape.values(row)), OURS[shape.format]
            for field, fault in faults_of(row, shape):
                raise BadLine(f"becomes {shape.name} whose {field} {fault.wrong}", fault.right)
        self._data.write(json.dumps(shape.values(row), ensure_ascii=False).encode() + b"\n")


def _problems(number: int, row: dict[str, Any], shape: Shape) -> list[LineProblem]:
    faults = islice(faults_of(row, shape), MOST_OF_A_LINE + 1)
    found = [LineProblem(number, field, fault.wrong, fault.right) for field, fault in faults]
    if len(found) > MOST_OF_A_LINE:
        found[-1] = LineProblem(number, None, f"has more than these {MOST_OF_A_LINE} problems", "what the others take")
    return found
