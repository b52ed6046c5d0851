"""Questions of a folder as a study: which of them each split has, and what the report says of their options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.study.__main__ import main
from tests.benchmarks.study.questions import question_of, questions
from tests.benchmarks.study.report import write_report
from tests.benchmarks.study.runner import Outcome, Point
from tests.benchmarks.study.task import Problem, StudyError


def problem(question: str, *options: str) -> Problem:
    text = "\n".join([question, "Options:", *(options or ("ice", "sand"))])
    return {"problem": text, "solution": "The answer is ice", "answer": "ice"}


def folder_of(path: Path, **files: list[Problem]) -> Path:
    for name, problems in files.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in problems), encoding="utf-8")
    return path


def numbered(first: int, last: int) -> list[Problem]:
    return [problem(f"Which of these is number {number}?") for number in range(first, last)]


def test_no_question_is_in_two_splits_whatever_its_options_and_case(tmp_path: Path) -> None:
    again = [
        problem("Which of these is NUMBER 7?", "ice", "rain"),
        problem("Which  of these is number 41?", "ice", "rain"),
    ]
    scale = questions(
        folder_of(tmp_path, train=numbered(0, 40) + again, validation=numbered(38, 50), test=numbered(45, 60))
    )
    splits = scale.task.splits(scale.sizes)
    asked = [question_of(one) for problems in splits.values() for one in problems]
    assert len(asked) == len(set(asked)) == 60
    assert scale.sizes == {"sft": 19, "preference": 19, "validation": 7, "test": 15}


def test_splits_do_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    files = {"validation": numbered(40, 50), "test": numbered(50, 60)}
    one = questions(folder_of(tmp_path, train=numbered(0, 40), **files))
    splits = one.task.splits(one.sizes)
    other = questions(folder_of(tmp_path, train=numbered(0, 40)[::-1], **files))
    assert other.task.splits(other.sizes) == splits


def test_a_folder_that_is_none_of_questions_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StudyError, match=r"test\.jsonl: No such file"):
        questions(tmp_path)
    folder_of(tmp_path, test=[{"text": "?"}])
    assert main(["questions", "--problems", str(tmp_path), "--data", str(tmp_path / "data")]) == 1
    assert "lines of {problem, solution, answer}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["questions"], ["screening", "--problems", "."], ["screening", "--share", "0"], ["--arms", "A", "F"]]
)
def test_arguments_that_say_nothing_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)


def test_the_report_tells_the_likeliest_option_beside_the_answers(tmp_path: Path) -> None:
    scale = questions(folder_of(tmp_path, train=numbered(0, 40), validation=numbered(40, 50), test=numbered(50, 60)))
    found = {
        Point(arm, rate, seed, split): Outcome(
            [True, False] * 50, ["ice"] * 100, "ft:model", {"warmup": 1e9}, [arm == "A"] * 60 + [False] * 40, -1.25
        )
        for arm, rate in (("SFT", 0.0), ("A", 1e-6))
        for seed in range(2)
        for split in ("validation", "test")
    }
    write_report(found, scale, tmp_path)
    numbers = json.loads((tmp_path / f"{scale.name}.json").read_text())
    assert [row["accuracy"] for row in numbers["test"]] == [0.5, 0.5]
    assert [row["accuracy"] for row in numbers["options"]] == [0.0, 0.6]
    assert "in nats: SFT -1.250, A -1.250." in (tmp_path / f"{scale.name}.md").read_text()
