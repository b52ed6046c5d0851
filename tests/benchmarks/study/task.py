"""The study's problems: the demo's stories with wider ranges, split by what is calculated.

    Ann has 12 bags of 17 nuts and eats 58. How many nuts are left?
    12*17=204, 204-58=146. The answer is 146

A calculation is in one split alone, and there it is told once: no text and no renaming of it is anywhere else, and
4*7-9 is the same calculation as 7*4-9. What is in no split is left to train the screening's model from nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random

from service.demo_task import TEMPLATE, told

__all__ = [
    "ARITHMETIC",
    "SIZES",
    "TEMPLATE",
    "Calculation",
    "Problem",
    "StudyError",
    "Task",
    "calculation_of",
    "rest",
    "splits",
    "stories",
    "write",
]

SIZES = {"sft": 500, "preference": 4000, "validation": 1000, "test": 2000}

Calculation = tuple[int, int, str, int]
"""The lesser factor, the greater one, the second step's sign and its figure."""

Problem = dict[str, str]


class StudyError(Exception):
    """Why the study cannot go on, in words for the person at the terminal."""


@dataclass(frozen=True)
class Task:
    """What a study is about: how a problem is put, how many tokens a response may have, and the problems of each split,
    by how many are wanted of each."""

    template: str
    tokens: int
    splits: Callable[[Mapping[str, int]], dict[str, list[Problem]]]


_BOXES, _EACH, _FIGURES, _DIVISORS = range(3, 13), range(3, 20), range(2, 100), range(2, 13)


def splits(sizes: Mapping[str, int] = SIZES, seed: int = 0) -> dict[str, list[Problem]]:
    """Each split's problems, a function of `seed`. Raises ValueError where the calculations do not suffice."""
    drawn, stories = _drawn(seed), Random(seed)
    if len(drawn) < sum(sizes.values()):
        raise ValueError(f"There are {len(drawn)} calculations, fewer than {sum(sizes.values())}")
    ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    return {
        name: [_told(stories, calculation) for calculation in drawn[ends[name] - n : ends[name]]]
        for name, n in sizes.items()
    }


ARITHMETIC = Task(TEMPLATE, 40, splits)


def rest(sizes: Mapping[str, int] = SIZES, seed: int = 0) -> list[Calculation]:
    """The calculations that no split has."""
    return _drawn(seed)[sum(sizes.values()) :]


def stories(calculations: Sequence[Calculation], seed: int) -> Iterator[Problem]:
    """Problems without end, of these calculations."""
    random = Random(seed)
    while True:
        yield _told(random, random.choice(calculations))


def calculation_of(problem: Mapping[str, str]) -> Calculation:
    """What a problem calculates, read from its solution."""
    found = re.fullmatch(r"(\d+)\*(\d+)=\d+, \d+([-+/])(\d+)=\d+\. The answer is \d+", problem["solution"])
    assert found
    boxes, each = sorted(map(int, found.group(1, 2)))
    return boxes, each, found[3], int(found[4])


def write(path: Path, problems: Sequence[Problem]) -> Path:
    """The problems as a file that the service takes."""
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems), encoding="utf-8")
    return path


def _all() -> list[Calculation]:
    pairs = sorted({(min(a, b), max(a, b)) for a in _BOXES for b in _EACH})
    return [(a, b, sign, figure) for a, b in pairs for sign in "+-/" for figure in _second_figures(a * b, sign)]


def _second_figures(total: int, sign: str) -> list[int]:
    if sign == "/":
        return [divisor for divisor in _DIVISORS if total % divisor == 0]
    return [figure for figure in _FIGURES if sign == "+" or figure < total]


def _drawn(seed: int) -> list[Calculation]:
    """All calculations in the order in which the splits take them."""
    found = _all()
    Random(seed).shuffle(found)
    return found


def _told(random: Random, calculation: Calculation) -> Problem:
    a, b, sign, figure = calculation
    return told(random, *random.choice(((a, b), (b, a))), sign, figure)
