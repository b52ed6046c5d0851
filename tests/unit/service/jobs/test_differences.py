"""In which settings jobs differ, worked by hand."""

from __future__ import annotations

from typing import Any

from service.jobs.differences import LEFT_OUT, differences
from service.jobs.tables import Job


def job(seed: int = 0, model: str = "m", **stages: dict[str, Any]) -> Job:
    return Job(model=model, training_file="file-1", seed=seed, method={"type": "allo", "stages": stages})


def test_jobs_of_the_same_settings_do_not_differ() -> None:
    assert differences([job(sft={"rate": 1}), job(sft={"rate": 1})]) == []


def test_what_differs_is_told_with_each_jobs_value() -> None:
    jobs = [job(sft={"rate": 1, "batch": 8}), job(3, sft={"rate": 1, "batch": 4}), job(sft={"rate": 1, "batch": 8})]
    assert [(one.name, one.values) for one in differences(jobs)] == [("seed", [0, 3, 0]), ("sft.batch", [8, 4, 8])]


def test_a_stage_that_one_leaves_out_is_told_once_and_compared_among_the_others() -> None:
    jobs = [job(forget={"beta": 1, "rate": 2}), job(), job(forget={"beta": 5, "rate": 2})]
    assert [(one.name, one.values) for one in differences(jobs)] == [
        ("forget", ["there", LEFT_OUT, "there"]),
        ("forget.beta", [1, LEFT_OUT, 5]),
    ]


def test_a_setting_that_an_earlier_version_did_not_have_differs() -> None:
    jobs = [job(sft={"rate": 1}), job(sft={"rate": 1, "new": 2})]
    assert [(one.name, one.values) for one in differences(jobs)] == [("sft.new", [None, 2])]


def test_a_stages_seed_is_told_where_it_is_not_the_jobs() -> None:
    jobs = [job(1, sft={"seed": 1}), job(2, sft={"seed": 2}), job(2, sft={"seed": 9})]
    assert [(one.name, one.values) for one in differences(jobs)] == [("seed", [1, 2, 2]), ("sft.seed", [None, None, 9])]
