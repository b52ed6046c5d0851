"""The demo's problems are right, distinct, reproducible and honestly split."""

from __future__ import annotations

import re
from collections import Counter

from service.demo_task import generate


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert generate(50, 1) == generate(50, 1)
    assert generate(50, 1) == generate(80, 1)[:50]
    assert generate(50, 1) != generate(50, 2)


def test_there_are_as_many_distinct_problems_as_asked_for() -> None:
    for n in (0, 1, 2000):
        assert len({problem["problem"] for problem in generate(n, 3)}) == n


def test_every_step_of_a_solution_is_right_and_uses_the_figures_of_its_problem() -> None:
    for problem in generate(2000, 4):
        first, second, answer = re.split(r", |\. The answer is ", problem["solution"])
        for step in (first, second):
            a, sign, b, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()  # type: ignore[union-attr]
            exact = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign]
            assert int(result) == exact
        assert answer == problem["answer"] == second.split("=")[1]
        figures = re.findall(r"\d+", problem["problem"])
        assert figures == [*re.findall(r"\d+", first)[:2], re.findall(r"\d+", second)[1]]


def test_held_out_problems_share_no_figures_with_training_problems_of_any_seed() -> None:
    training = {problem["solution"] for seed in range(5) for problem in generate(1000, seed)}
    held_out = {problem["solution"] for seed in range(5) for problem in generate(300, seed, held_out=True)}
    assert len(held_out) > 200
    assert not training & held_out


def test_the_three_kinds_of_story_come_about_equally_often_in_both_files() -> None:
    for held_out in (False, True):
        signs = Counter(
            re.search(r", \d+(.)", problem["solution"])[1]  # type: ignore[index]
            for problem in generate(600, 5, held_out=held_out)
        )
        assert all(120 < count < 300 for count in signs.values()), signs


def test_the_answer_alone_is_hard_to_guess() -> None:
    answers = Counter(problem["answer"] for problem in generate(2000, 6))
    assert answers.most_common(1)[0][1] < 200
