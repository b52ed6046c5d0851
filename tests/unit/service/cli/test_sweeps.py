"""A sweep as the terminal takes and shows it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from service.cli.estimate import points_table
from service.cli.jobs import parse_sweep
from service.cli.sweeps import tell
from service.cli.terminal import CommandError, err, out


def test_values_are_json_or_words_and_lists_may_be_values() -> None:
    asked = ["improve.beta=.1,2e-1", "locate.importance=random,update", "pair.pass_rate=[0, 1],[0.1,0.9]", "seed=3"]
    assert parse_sweep(asked) == {
        "improve.beta": [0.1, 0.2],
        "locate.importance": ["random", "update"],
        "pair.pass_rate": [[0, 1], [0.1, 0.9]],
        "seed": [3],
    }


@pytest.mark.parametrize("asked", [["seed"], ["seed="], ["=1"], ["seed=1", "seed=2"]])
def test_what_is_no_list_of_values_is_refused(asked: list[str]) -> None:
    with pytest.raises(CommandError, match="--sweep"):
        parse_sweep(asked)


def point(rate: float, value: float | None, **more: Any) -> dict[str, Any]:
    figure = None
    if value is not None:
        figure = {"measure": "accuracy", "value": value, "low": value - 0.05, "high": value + 0.05}
    job = {"job_id": f"ftjob-{rate}", "status": "succeeded", "best_validation_loss": None}
    return {"point": {"improve.learning_rate": rate}, "figure": figure, **job, **more}


def shown(*points: dict[str, Any], best: dict[str, Any] | None = None) -> str:
    sweep = {"id": "ftsweep-1", "status": "running", "points": list(points), "best": best, "notes": ["Be careful."]}
    with out.capture() as caught, err.capture() as cautions:
        tell(Namespace(json=False), sweep)
    return caught.get() + cautions.get()


def test_a_table_shows_what_is_known_and_the_best_with_its_interval() -> None:
    winner = point(1e-5, 0.5)
    best = {"setting": winner["point"], "job_ids": ["ftjob-1e-05"], "figure": winner["figure"]}
    told = shown(winner, point(1e-4, None, status="running"), best=best)
    assert "Best is improve.learning_rate 1e-05: 50.0%. 95 % interval 45.0% – 55.0%." in told
    assert "Be careful." in told
    assert "validation loss" not in told
    seeds = shown(winner, best={**best, "setting": {}, "job_ids": ["ftjob-1", "ftjob-2"]})
    assert "Best is its own settings: 50.0%, the mean of 2 seeds." in seeds
    assert "0.2500" in shown(point(1e-4, None, best_validation_loss=0.25))


def test_an_estimate_of_a_sweep_has_a_line_a_point_and_their_sum() -> None:
    band = {"low": 60.0, "expected": 90.0, "high": 120.0}
    taking = {"tokens": 1000, "seconds": band, "peak_memory_bytes": 2**30, "disk_bytes": 2**30}
    points = [{"point": {"seed": seed}, "computes": stages, **taking} for seed, stages in ((0, ["sft"]), (1, []))]
    with out.capture() as caught:
        out.print(points_table({"points": points, **taking, "tokens": 2000}), width=120)
    first, second, total = (line for line in caught.get().splitlines() if "1:30" in line)
    assert ("seed 0" in first, "sft" in first, "nothing" in second) == (True, True, True)
    assert "2,000" in total
