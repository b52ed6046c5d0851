"""Multiple choice as the study's problems: a folder of train.jsonl, validation.jsonl and test.jsonl.

    {"problem": "Which of these melts?\\nOptions:\\nice\\nsand", "solution": "The answer is ice", "answer": "ice"}

Half of what is to learn from is SFT's, the other half is sampled, told apart by the question. No question is in two
splits, whatever options it is asked with: those of other files that test.jsonl has too are left out, and those of
train.jsonl that validation.jsonl has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.study.arms import SCALES, Scale
from tests.benchmarks.study.task import TEMPLATE, Problem, StudyError, Task


def questions(folder: Path) -> Scale:
    """The study of SmolLM2-135M-Instruct on a folder's questions, with all that it has. Raises StudyError where a file
    is missing or is no such file."""
    splits = read(folder)
    short = SCALES["short"]
    return replace(
        short,
        name=f"questions-{folder.name}",
        sft={**short.sft, "learning_rate": 5e-5},
        seeds=3,
        sizes={name: len(problems) for name, problems in splits.items()},
        task=Task(TEMPLATE, 32, lambda sizes: _first(splits, sizes)),
    )


def read(folder: Path) -> dict[str, list[Problem]]:
    """Each split's problems, in an order that is by their questions' content. Raises StudyError as above."""
    taken: set[str] = set()
    found = {name: _apart(_lines(folder / f"{name}.jsonl"), taken) for name in ("test", "validation", "train")}
    train = found["train"]
    return {
        "sft": train[::2],
        "preference": train[1::2],
        "validation": found["validation"],
        "test": found["test"],
    }


def question_of(problem: Mapping[str, str]) -> str:
    """What is asked, without the options."""
    return " ".join(problem["problem"].partition("\nOptions:")[0].casefold().split())


def _apart(problems: list[Problem], taken: set[str]) -> list[Problem]:
    """One problem a question, of those whose question is not taken; they are from now on."""
    by_question = {question_of(problem): problem for problem in reversed(problems)}
    kept = sorted(by_question.keys() - taken, key=lambda question: hashlib.sha256(question.encode()).digest())
    taken.update(by_question)
    return [by_question[question] for question in kept]


def _lines(path: Path) -> list[Problem]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{name: str(line[name]) for name in ("problem", "solution", "answer")} for line in lines]
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}. Give a folder of train, validation and test.jsonl.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} is to have lines of {{problem, solution, answer}}: {error!r}") from error


def _first(splits: Mapping[str, list[Problem]], sizes: Mapping[str, int]) -> dict[str, list[Problem]]:
    return {name: problems[: sizes[name]] for name, problems in splits.items()}
