"""The options that a problem lists, and the one that its reference is."""

from __future__ import annotations

import pytest

from allo_engine.data.choices import Choice, choice_of
from allo_engine.data.records import Problem

PLAIN = "There is most likely going to be fog around:\nOptions:\na marsh\na tundra\nthe plains\na desert"
LETTERED = "Which is red?\n(A) grass\n(B) blood\n(C) snow"


@pytest.mark.parametrize(
    ("text", "solution", "answer", "expected"),
    [
        (PLAIN, "The answer is a marsh", "a marsh", Choice(("a marsh", "a tundra", "the plains", "a desert"), 0)),
        (PLAIN, "The answer is The plains.", None, Choice(("a marsh", "a tundra", "the plains", "a desert"), 2)),
        (LETTERED, "", "B", Choice(("A", "B", "C"), 1)),
        (LETTERED, "", "(C)", Choice(("A", "B", "C"), 2)),
        (LETTERED, "", "Blood", Choice(("grass", "blood", "snow"), 1)),
        ("Pick:\nChoices:\nA. one\nB. two\n\nThink.", "", "A", Choice(("A", "B"), 0)),
        ("Pick:\nA: 12\nB: 13\nAnswer with a letter.", "", "13", Choice(("12", "13"), 1)),
    ],
)
def test_options_below_a_head_or_lettered_are_read(
    text: str, solution: str, answer: str | None, expected: Choice
) -> None:
    assert choice_of(Problem(text, solution, answer)) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What is 2 + 2?", "4"),
        (PLAIN, "a swamp"),
        ("Which?\nOptions:\nred\nRed.\nblue", "blue"),
        (LETTERED, "D"),
        ("Which?\nOptions:\nonly one", "only one"),
        ("Which?\n(B) two\n(C) three", "B"),
    ],
    ids=["no options", "another answer", "equal options", "no such letter", "one option", "no A"],
)
def test_a_problem_without_exactly_one_right_option_is_no_choice(text: str, answer: str) -> None:
    assert choice_of(Problem(text, "", answer)) is None
