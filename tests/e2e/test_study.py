"""The study drives a real service, and goes on where it was cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.client import Client
from tests.benchmarks.study.arms import SCALES
from tests.benchmarks.study.runner import Point, Runner
from tests.benchmarks.study.study import run
from tests.benchmarks.study.task import StudyError
from tests.e2e.conftest import Service

SCALE = replace(
    SCALES["screening"],
    name="tiny-study",
    model="tiny",
    sizes={"sft": 4, "validation": 3},
    sft={"learning_rate": 1e-4, "batch_size": 4, "n_epochs": 1},
)
POINTS = [Point("SFT", 0.0, seed, "validation") for seed in range(3)]


class CutOff(Exception):
    pass


def cut_off(text: str) -> None:
    raise CutOff(text)


def test_a_study_that_was_cut_off_goes_on_and_computes_no_point_twice(service: Service, tmp_path: Path) -> None:
    with Client(service.url, service.key) as client:
        with pytest.raises(CutOff):
            Runner(client, SCALE, tmp_path, cut_off, wait=0.2).run(POINTS[:2])
        found = Runner(client, SCALE, tmp_path, wait=0.2).run(POINTS)
        assert [len(found[point].cases) for point in POINTS] == [3, 3, 3]
        assert [len(found[point].answers) for point in POINTS] == [3, 3, 3]

        again = Runner(client, SCALE, tmp_path, cut_off, wait=0.2)
        assert again.outcomes() == found
        assert again.run(POINTS) == found
        assert len(list(again._pages())) == len(POINTS)


def test_other_settings_are_other_points(service: Service, tmp_path: Path) -> None:
    with Client(service.url, service.key) as client:
        other = replace(SCALE, sft={**SCALE.sft, "learning_rate": 2e-4})
        assert Runner(client, other, tmp_path).outcomes() == {}


def test_a_study_whose_task_is_too_hard_says_so_reports_it_and_compares_nothing(
    service: Service, tmp_path: Path
) -> None:
    with Client(service.url, service.key) as client, pytest.raises(StudyError, match="A gate failed"):
        run(Runner(client, SCALE, tmp_path, wait=0.2), tmp_path)
    page = (tmp_path / "tiny-study.md").read_text()
    assert "FAILED: SFT answers 30% to 60% rightly: 0.0%" in page
    assert "| A |" not in page
