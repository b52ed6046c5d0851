"""The options that a problem lists, and which of them is right. Free of torch.

Options:            or            A. a marsh           or the two together; (A), A) and A: label as well
a marsh                           B. a tundra
a tundra
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from allo_engine.data.answers import reference
from allo_engine.data.parsing import parse
from allo_engine.data.records import Problem
from allo_engine.data.values import Options, normalise

_HEAD = re.compile(r"\s*(?:answer\s+)?(?:options|choices)\s*:\s*", re.I)
_LABELLED = re.compile(r"\s*(?:\(([A-J])\)|([A-J])[.):])\s+(\S.*?)\s*")


@dataclass(frozen=True)
class Choice:
    """What an answer would say for each option, their letters where the reference is a letter, and the right one."""

    options: tuple[str, ...]
    right: int


def choice_of(problem: Problem) -> Choice | None:
    """None where the problem lists no options, or where the reference is not exactly one of them."""
    options, labelled = _listed(problem.problem.splitlines())
    gold = reference({"answer": problem.answer, "solution": problem.solution})
    if len(options) < 2 or gold is None:
        return None
    value = parse(gold)
    if labelled and isinstance(value, Options):
        letters = tuple("ABCDEFGHIJ"[: len(options)])
        right = [place for place, letter in enumerate(letters) if {letter} == value.letters]
        return Choice(letters, right[0]) if right else None
    texts = [normalise(option) for option in options]
    right = [place for place, text in enumerate(texts) if text == normalise(gold)]
    return Choice(tuple(options), right[0]) if len(right) == 1 and len(set(texts)) == len(texts) else None


def _listed(lines: Sequence[str]) -> tuple[list[str], bool]:
    """The options, and whether they are labelled."""
    heads = [place for place, line in enumerate(lines) if _HEAD.fullmatch(line)]
    if heads:
        below = [line.strip() for line in lines[heads[-1] + 1 :]]
        below = below[: below.index("")] if "" in below else below
        labelled = _labelled(below)
        return (labelled, True) if len(labelled) == len(below) else (below, False)
    return _labelled(lines), True


def _labelled(lines: Sequence[str]) -> list[str]:
    """The last run of lines that begin with A, B, C, … in order."""
    found: list[str] = []
    for line in lines:
        match = _LABELLED.fullmatch(line)
        letter = (match[1] or match[2]) if match else None
        if match and letter == "A":
            found = [match[3]]
        elif match and found and letter == "ABCDEFGHIJ"[len(found) : len(found) + 1]:
            found.append(match[3])
    return found
