"""Figures as people read them."""

from __future__ import annotations

import pytest

from service.pages import words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0, "0 s"),
        (-3, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90_000, "1 d 1 h"),
        (86_400 * 9 + 59, "9 d"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_960, "100 kB"),
        (999_600, "1.0 MB"),
        (5e12, "5.0 TB"),
    ],
)
def test_sizes_have_at_most_three_digits_before_the_point(count: int | None, said: str) -> None:
    assert words.size(count) == said


def test_numbers_are_told_in_four_digits_and_counts_whole() -> None:
    thin = "\N{NARROW NO-BREAK SPACE}"
    assert words.number(1234567) == f"1{thin}234{thin}567"
    assert words.number(0.123456) == "0.1235"
    assert words.number(None) == "–"
    assert words.percent(0.426) == f"43{thin}%"
    assert words.moment(0) == "1970-01-01T00:00:00Z"
    assert words.when(None) == "–"


def test_a_long_name_keeps_how_it_begins_and_how_it_ends() -> None:
    assert words.short("a" * 60) == "a" * 60
    assert words.short("train-" + "x" * 200 + "-part-3.jsonl") == "train-" + "x" * 34 + " … " + "xxxx-part-3.jsonl"
