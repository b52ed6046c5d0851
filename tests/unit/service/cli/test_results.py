"""A job's report as the terminal shows it."""

from __future__ import annotations

from typing import Any

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
