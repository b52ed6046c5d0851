"""A job's report as the terminal shows it."""

from __future__ import annotations

from typing import Any

from service.cli.comparing import show_comparison
from service.cli.results import show_report
from service.cli.terminal import out


def shown(rows: list[dict[str, Any]]) -> str:
    with out.capture() as caught:
        show_report(rows)
    return caught.get()


def test_samples_and_options_get_columns_where_they_were_asked_for() -> None:
    row = {"model": "base", "right": 1, "problems": 4, "unparsed": 0, "accuracy": 0.25}
    row |= {"accuracy_low": 0.05, "accuracy_high": 0.7}
    assert "pass@" not in shown([row])
    told = shown([row | {"pass_at_8": 0.75, "pass_at_1": 0.3125, "pass_at_8_low": 0.5, "option_accuracy": 0.5}])
    assert told.index("pass@1") < told.index("pass@8")
    assert all(share in told for share in ("31.2%", "75.0%", "50.0%"))
    assert "option" in told


def test_preferences_say_how_far_margins_can_be_believed() -> None:
    row = {"model": "base", "pairs": 4, "accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.8, "margin": 0.01}
    assert "0.125" in shown([row | {"calibration_error": 0.125}])


def test_a_comparison_shows_its_interval_what_was_left_out_and_answers_that_changed() -> None:
    measure = {"measure": "accuracy", "better": "higher", "cases": 6, "ours": 0.5, "theirs": 0.25}
    measure |= {"difference": 0.25, "low": -0.125, "high": 0.625, "p": 0.2}
    loss = {**measure, "measure": "cross_entropy", "better": "lower", "difference": -0.0125}
    answer = {"case": "c", "gained": 1, "lost": 0, "problem": "1 +\n[bold]1[/]", "ours": "2", "theirs": "3"}
    found: dict[str, Any] = {
        "pairs": [{"ours": "ftjob-1:improve", "theirs": "ftjob-2:warmup", "seeds": [0, 0]}] * 2,
        "cases": 6,
        "left_out": 2,
        "measures": [measure, loss],
        "changed": {"gained": 1, "lost": 0, "differing": 1, "shown": [answer]},
    }
    with out.capture() as caught:
        show_comparison(found)
    told = " ".join(caught.get().split())
    assert "+25.0%" in told
    assert "-0.0125" in told
    assert "and 1 more" in told
    assert "6 held-out cases; 2 more are not in all of them" in told
    assert "1 + [bold]1[/] first: 2 second: 3 right: first" in told


def test_what_the_last_model_lost_and_what_a_judge_thinks_of_it_is_told() -> None:
    rows: list[dict[str, Any]] = [{"model": name, "tokens": 9, "cross_entropy": 1.5} for name in ("base", "sft")]
    rows[0]["retention"] = {"accuracy": 0.5}
    rows[1]["retention"] = {"accuracy": 0.25, "against_base": {"difference": -0.25, "low": -0.375, "high": -0.125}}
    rates = {f"win_rate{more}": share for more, share in [("", 0.5), ("_low", 0.25), ("_high", 0.75)]}
    rates |= {f"win_rate_lc{more}": share for more, share in [("", 0.4), ("_low", 0.2), ("_high", 0.6)]}
    rows[1] |= {"judged_against": "base", "judged": 8, **rates}
    told = " ".join(shown(rows).split())
    assert "to base in 50.0% (95 % interval 25.0% to 75.0%) of 8 answers" in told
    assert "at equal length in 40.0% (95 % interval 20.0% to 60.0%)" in told
    assert "accuracy 50.0% of the base, 25.0% of the last; -25.0% (95 % interval -37.5% to -12.5%)" in told


def test_every_figure_of_a_harness_task_is_told_of_every_model() -> None:
    rows: list[dict[str, Any]] = [{"model": name, "tokens": 9, "cross_entropy": 1.5} for name in ("base", "sft")]
    rows[0]["harness"] = {"colours": {"acc": 0.25, "acc_stderr": 0.0625, "f1": 0.5}}
    rows[1]["harness"] = {"colours": {"acc": 0.75, "acc_stderr": 0.0625, "f1": 0.5}}
    told = " ".join(shown(rows).replace("│", " ").split())
    assert "colours acc 0.250 ± 0.062 0.750 ± 0.062" in told
    assert "colours f1 0.500 0.500" in told
