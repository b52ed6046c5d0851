"""Curves in a line of text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from service.cli.sparklines import Curves, sparkline
from service.cli.watch import _Screen, _View, status_of


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([3], "▁"), ([1, 1], "▁▁"), ([0, 7], "▁█"), (range(8), "▁▂▃▄▅▆▇█"), ([0, float("nan"), 1], "▁ █")],
)
def test_a_curve_goes_from_its_least_to_its_most(values: list[float], drawn: str) -> None:
    assert sparkline(values, 8) == drawn


@given(st.lists(st.floats()), st.integers(1, 40))
def test_a_curve_is_never_wider_than_asked_whatever_its_values(values: list[float], width: int) -> None:
    drawn = sparkline(values, width)
    assert len(drawn) == min(width, len(values))
    assert set(drawn) <= set(" ▁▂▃▄▅▆▇█")


def test_curves_are_of_the_stage_under_way_and_a_step_that_ran_again_counts_once() -> None:
    curves = Curves()
    for stage, step, loss in (("sft", 1, 9.0), ("improve", 1, 0.0), ("improve", 2, 5.0), ("improve", 2, 7.0)):
        curves.tell({"stage": stage, "step": step, "loss": loss})
    curves.tell({"loss": 1.0})
    assert curves.lines(10) == [("loss", "▁█", "7")]


def test_a_long_curve_is_thinned_out_evenly_and_keeps_its_last_value() -> None:
    curves = Curves()
    for step in range(5000):
        curves.tell({"stage": "sft", "step": step, "loss": float(step)})
    assert curves.lines(8) == [("loss", "▁▂▃▄▅▆▇█", "4999")]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_screen_has_bars_of_several_jobs_and_curves_where_somebody_looks_on(terminal: bool) -> None:
    console = Console(force_terminal=terminal, width=100)
    screen = _Screen(console)
    stage = {"name": "sft", "status": "running", "eta_seconds": 60, "attempt": 1}
    stage |= {"progress": {"fraction": 0.5}, "metrics": {"loss": 1.0}}
    for name in ("ftjob-1", "ftjob-2"):
        screen.views[name] = view = _View(screen, name)
        events = [{"stage": "sft", "step": step, "loss": 2.0 - step} for step in range(2)]
        assert view.tell([{"type": "metrics", "id": "last", "data": data} for data in events]) == "last"
        view.show({"stages": [stage]})
    with console.capture() as caught:
        console.print(screen.get_renderable())
    told = caught.get()
    assert (told.count("50%"), told.count("█▁")) == (2, 2 if terminal else 0)
    assert told.index("ftjob-1") < told.index("ftjob-2")


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["succeeded", "running"], "running"),
        (["cancelled", "failed"], "failed"),
        (["succeeded", "cancelled"], "cancelled"),
    ],
)
def test_of_several_jobs_the_worst_counts_once_all_have_ended(statuses: list[str], status: str) -> None:
    assert status_of([{"status": one} for one in statuses]) == status
