"""A judge of two answers, over a real connection: it reads them in both orders, and length is taken out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from allo_engine.config import Teacher
from allo_engine.data.judge import Duel, judged, win_rates
from allo_engine.report import Report
from tests.teacher import teacher
from tests.unit.engine.conftest import Lines


def answers_of(question: str) -> tuple[str, str]:
    """A and B, as a judge reads them."""
    found = re.search(
        r"\[Answer A\]\n(.*)\n\[End of answer A\]\n\n\[Answer B\]\n(.*)\n\[End of answer B\]", question, re.S
    )
    assert found
    return found[1], found[2]


def asked(url: str, duels: list[Duel], cache: Path) -> dict[str, Any]:
    judge = Teacher(base_url=url, model="judge")
    return judged(duels, judge, "secret", cache, Report(Lines()), "evaluate.judge")


DUELS = [Duel(f"question {n}", f"ours {n}", f"theirs, longer {n}") for n in range(6)]


def test_a_judge_that_looks_at_the_place_alone_makes_ties(tmp_path: Path) -> None:
    with teacher(lambda *_: (200, "The first convinces me. [[A]]")) as server:
        found = asked(server.url, DUELS, tmp_path)
        assert len(server.questions) == 12
        assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}
    assert (found["wins"], found["ties"], found["losses"]) == (0, 6, 0)
    assert (found["win_rate"], found["judge_consistency"]) == (0.5, 0.0)


def test_what_both_orders_say_counts_and_is_asked_once(tmp_path: Path) -> None:
    """It knows which are ours, wins 4 of them, and reads the first answer as the better one where it is not sure."""

    def answering(question: str, _: int) -> tuple[int, Any]:
        first, _ = answers_of(question)
        number = int(question.partition("question ")[2].partition("\n")[0])
        if number < 4:
            return 200, "[[A]] is what I thought, but: [[" + ("A" if first.startswith("ours") else "B") + "]]"
        return 200, "[[A]]" if number == 4 else "I cannot say."

    with teacher(answering) as server:
        found = asked(server.url, [*DUELS, Duel("same", "equal", "equal")], tmp_path)
        assert asked(server.url, DUELS, tmp_path)["judge_cached"] == 12
        assert len(server.questions) == 12
    assert (found["judged"], found["unjudged"]) == (6, 1)
    assert (found["wins"], found["ties"], found["losses"]) == (4, 2, 0)
    assert found["win_rate"] == pytest.approx((4 + 0.5 + 0.5) / 6)
    assert found["judge_consistency"] == pytest.approx(4 / 5)
    assert found["win_rate_low"] < found["win_rate"] <= found["win_rate_high"] <= 1


def test_an_answer_cannot_fill_another_answers_place() -> None:
    first, _ = Duel("{a}", "{b} {question}", "plain").orders()
    assert answers_of(first) == ("{b} {question}", "plain")
    assert "[Question]\n{a}\n" in first


def test_the_length_controlled_win_rate_worked_by_hand() -> None:
    # 30 of 40 won where ours is longer, 10 of 20 where it is shorter: θ + φx = ln 3, θ − φx = 0, so θ = ln 3 / 2
    worths, gaps = [1.0] * 30 + [0.0] * 10 + [1.0] * 10 + [0.0] * 10, [10] * 40 + [-10] * 20
    found = win_rates(worths, gaps)
    assert found["win_rate"] == pytest.approx(40 / 60)
    assert found["win_rate_lc"] == pytest.approx(3**0.5 / (1 + 3**0.5), abs=1e-3)
    assert found["win_rate_lc_low"] < found["win_rate_lc"] < found["win_rate_lc_high"]
    even = win_rates([1.0] * 30 + [0.0] * 10, [0] * 40)
    assert even["win_rate_lc"] == pytest.approx(0.75, abs=1e-3)


def test_a_judge_that_looks_at_length_alone_is_told_apart_from_one_that_prefers_ours(tmp_path: Path) -> None:
    def longer(question: str, _: int) -> tuple[int, Any]:
        a, b = answers_of(question)
        return 200, "[[A]]" if len(a) > len(b) else "[[B]]"

    duels = [Duel(f"q{n}", "o" * (30 if n % 5 else 10), "t" * 20) for n in range(40)]
    with teacher(longer) as server:
        found = asked(server.url, duels, tmp_path)
    assert (found["win_rate"], found["judge_consistency"]) == (pytest.approx(0.8), 1.0)
    # 32 won where ours is longer, 8 lost where it is shorter: on the way to φ = ∞ θ stays at ln(32/8) / 2
    assert found["win_rate_lc"] == pytest.approx(2 / 3, abs=0.03)
    all_won = win_rates([1.0] * 20, list(range(20)))
    assert 0.95 < all_won["win_rate_lc"] <= 1
