"""What stages hand to each other, as JSON lines: a line a problem, responses as token ids. Free of torch.

A `Group` is a problem's prompt with its responses, so that a prompt is stored, scored and trained on once however many
responses it has. Ids are made once, when a text enters the pipeline, and are never tokenised again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

Ids = list[int]


@dataclass(frozen=True)
class Record:
    """A line of a file that a stage wrote."""

    @classmethod
    def read(cls, path: Path) -> list[Self]:
        names = {field.name for field in fields(cls)}
        return [cls(**{key: value for key, value in line.items() if key in names}) for line in read_lines(path)]


@dataclass(frozen=True)
class Problem:
    """A problem as its file has it: the text, the reference solution, and the answer if the file names it."""

    problem: str
    solution: str
    answer: str | None = None


@dataclass(frozen=True)
class SampledProblem(Record):
    """A problem with its sampled responses. `finished[i]` says whether response i ended by itself."""

    problem: str
    solution: str
    answer: str | None
    prompt_ids: Ids
    responses: list[Ids]
    texts: list[str]
    finished: list[bool]


@dataclass(frozen=True)
class PairGroup(Record):
    """A problem's responses and its pairs, each as (chosen, rejected) places in `responses`."""

    prompt_ids: Ids
    responses: list[Ids]
    pairs: list[tuple[int, int]]


@dataclass(frozen=True)
class NegativeGroup(Record):
    """A problem's distinct wrong responses, each with the right response nearest to it."""

    problem: str
    solution: str
    prompt_ids: Ids
    responses: list[Ids]
    corrections: list[Ids]
    answer: str | None = None


@dataclass(frozen=True)
class ScoredGroup(Record):
    """Wrong responses with, a token, the rewriter's probability and the reference's log-probability (nats)."""

    prompt_ids: Ids
    responses: list[Ids]
    probabilities: list[list[float]]
    reference_logps: list[list[float]]


@dataclass(frozen=True)
class ShownResponse(Record):
    """A wrong response for people to read: the text of each of its tokens, the rewriter's probability of it, and which
    end the response. Of a long one the beginning; `length` counts all."""

    problem: str
    tokens: list[str]
    probabilities: list[float]
    ends: list[bool]
    length: int


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines; blank lines are passed over."""
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        for line in stream:
            if line.strip():
                yield json.loads(line)


def write_lines(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


def as_problem(line: Mapping[str, Any]) -> Problem:
    """A line of a problems file: {problem | question | input, solution | output, answer?}; null says nothing."""
    problem = next(line[key] for key in ("problem", "question", "input") if line.get(key) is not None)
    solution = next(line[key] for key in ("solution", "output") if line.get(key) is not None)
    answer = line.get("answer")
    return Problem(problem, solution, None if answer is None else str(answer))
