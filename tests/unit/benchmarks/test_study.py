"""The study's own logic: what is split, chosen, let through and reported."""

from __future__ import annotations

from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from allo_engine.pipeline import Data, plan
from tests.benchmarks.study.arms import ARMS, SCALES, method
from tests.benchmarks.study.gates import arm_gates, sft_gate
from tests.benchmarks.study.report import compared, write_report
from tests.benchmarks.study.runner import Outcome, Point, at_rates, chosen
from tests.benchmarks.study.task import SIZES, calculation_of, rest, splits

SCALE = SCALES["screening"]


def outcome(right: float, total: int = 1000, seed: int = 0) -> Outcome:
    cases = [number < right * total for number in range(total)]
    Random(seed).shuffle(cases)
    return Outcome(cases, [str(case) for case in cases], "ft:model", {"warmup": 1e9})


def test_no_calculation_is_in_two_splits_or_in_what_the_small_model_learns_from() -> None:
    calculations = [calculation_of(problem) for problems in splits().values() for problem in problems]
    assert len(calculations) == sum(SIZES.values())
    assert len({*calculations, *rest()}) == len(calculations) + len(rest())


def test_splits_are_the_same_each_time_and_others_for_another_seed() -> None:
    assert splits() == splits()
    assert splits() != splits(seed=1)


def test_more_problems_than_there_are_calculations_are_refused() -> None:
    with pytest.raises(ValueError, match="calculations"):
        splits({"test": 10**6})


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_job_that_the_pipeline_takes(arm: str) -> None:
    for rate in SCALE.rates(arm):
        asked = method(SCALE, arm, rate)
        given = asked[asked["type"]]
        stages = plan(asked["type"], Data("problems", validation="problems"), given["stages"], given["hyperparameters"])
        assert [stage.name for stage in stages][-2] == ARMS[arm].row


def test_arms_are_tried_at_equally_many_rates() -> None:
    for scale in SCALES.values():
        assert len({len(scale.rates(arm)) for arm in ARMS if ARMS[arm].trains != "none"}) == 1


def test_rates_are_chosen_on_the_validation_problems_of_seed_0_alone() -> None:
    found = {
        Point("A", 1e-5, 0, "validation"): outcome(0.5),
        Point("A", 1e-4, 0, "validation"): outcome(0.4),
        Point("A", 1e-4, 1, "validation"): outcome(0.9),
        Point("A", 1e-4, 0, "test"): outcome(0.9),
    }
    assert chosen(found) == {"A": 1e-5}


def test_of_equally_good_rates_the_lowest_is_chosen() -> None:
    equal = {point: outcome(0.5) for point in at_rates(SCALE, ["A"], 0, "validation")}
    assert chosen(equal) == {"A": SCALE.soft["dense"][0]}


def test_what_chooses_a_rate_is_no_problem_that_gates_it() -> None:
    lucky = Outcome([True] * 50 + [False] * 50, ["a"] * 100, "ft:model", {})
    steady = Outcome([True] * 40 + [False] * 10 + [True] * 40 + [False] * 10, ["b"] * 100, "ft:model", {})
    found = {
        Point("SFT", 0.0, 0, "validation"): steady,
        Point("A", 1e-5, 0, "validation"): steady,
        Point("A", 1e-4, 0, "validation"): lucky,
        Point("D", 1e-4, 0, "validation"): steady,
    }
    assert chosen(found)["A"] == 1e-4
    gain, _ = arm_gates(found)
    assert not gain.passed
    assert "A at 0.0001: -80.0" in gain.found


@pytest.mark.parametrize(("right", "passed"), [(0.29, False), (0.3, True), (0.6, True), (0.61, False)])
def test_sft_that_leaves_too_little_right_or_wrong_stops_the_study(right: float, passed: bool) -> None:
    assert sft_gate({Point("SFT", 0.0, 0, "validation"): outcome(right)}).passed is passed


@pytest.mark.parametrize(
    ("dense", "other_seed", "passed"),
    [(0.53, 1, [True, True]), (0.51, 1, [False, True]), (0.53, 0, [True, False])],
)
def test_a_baseline_that_gains_nothing_and_arms_that_do_the_same_stop_the_study(
    dense: float, other_seed: int, passed: list[bool]
) -> None:
    found = {
        Point("SFT", 0.0, 0, "validation"): outcome(0.5),
        Point("A", 1e-4, 0, "validation"): outcome(dense),
        Point("D", 1e-3, 0, "validation"): outcome(dense, seed=other_seed),
    }
    assert [gate.passed for gate in arm_gates(found)] == passed


def test_the_answers_of_several_seeds_say_whether_two_arms_do_the_same() -> None:
    found = {Point("SFT", 0.0, 0, "validation"): outcome(0.5)}
    for seed in range(3):
        found[Point("A", 1e-4, seed, "validation")] = outcome(0.53, seed=seed)
        found[Point("D", 1e-3, seed, "validation")] = outcome(0.53, seed=2 * seed)  # another order but for seed 0
    _, gate = arm_gates(found)
    assert gate.passed
    assert gate.found.endswith("% of 3000")
    del found[Point("D", 1e-3, 1, "validation")], found[Point("D", 1e-3, 2, "validation")]
    _, gate = arm_gates(found)
    assert (gate.passed, gate.found) == (False, "0.0% of 1000")


def test_of_all_masks_the_one_that_is_best_where_rates_are_chosen_is_held_against_dpo() -> None:
    found = {
        Point("SFT", 0.0, 0, "validation"): outcome(0.5),
        Point("A", 1e-4, 0, "validation"): outcome(0.53),
        Point("D", 1e-4, 0, "validation"): outcome(0.3),
        Point("I", 1e-3, 0, "validation"): outcome(0.53, seed=1),
    }
    _, gate = arm_gates(found)
    assert (gate.claim, gate.passed) == ("A and I differ on 10% of the answers", True)


def test_the_report_says_who_is_better_where_one_is_and_draws_every_arm(tmp_path: Path) -> None:
    right = {"SFT": 0.4, "A": 0.45, "B": 0.55, "J": 0.45}
    found = {
        Point(arm, rate, seed, split): outcome(right[arm], seed=seed)
        for arm in right
        for rate in SCALE.rates(arm)[:2]
        for seed in range(3)
        for split in ("validation", "test")
    }
    rows = {row["arm"]: row for row in compared(found)}
    assert rows["A"]["against_A"] is None
    assert rows["B"]["against_A"]["low"] > 0.05
    assert rows["B"]["against_J"]["low"] > 0.05
    assert rows["B"]["p"] < 0.05
    assert rows["SFT"]["against_A"]["high"] < 0
    write_report(found, SCALE, tmp_path)
    picture = ElementTree.parse(tmp_path / "screening.svg")  # noqa: S314 - our own
    texts = {text.text for text in picture.iter() if text.text}
    assert {"A", "B", "SFT"} <= texts
    page = (tmp_path / "screening.md").read_text()
    assert "| B | DPO in the 5 %" in page
    assert "| against SFT | against J | against A | p |" in page
