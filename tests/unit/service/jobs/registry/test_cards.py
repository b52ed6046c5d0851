"""The card of a model: what its evaluation found beside the accuracy."""

from __future__ import annotations

from typing import Any

import pytest

from service.jobs.lifecycle import StageStatus
from service.jobs.registry.cards import card
from service.jobs.service import JobView
from service.jobs.tables import Job, Model, Stage


def section(title: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a part of the card, by the metrics of the stages."""
    job = Job(id="ftjob-1", model="tiny", seed=0, sources={}, method={"type": "dpo"})
    stages = [
        Stage(name=name, status=StageStatus.SUCCEEDED, config={}, metrics=found.get(name, {}))
        for name in ("warmup", "warmup-2", "evaluate")
    ]
    text = card(JobView(job, tuple(stages), {}), "main", None).decode()
    return text.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0].splitlines()


def accuracies(metrics: dict[str, Any]) -> list[str]:
    return section("On held-out data", {"evaluate": metrics})


def test_samples_options_and_retention_get_columns_where_they_were_found() -> None:
    plain = {"base_accuracy": 0.25, "base_accuracy_low": 0.1, "base_accuracy_high": 0.5, "warmup_accuracy": 0.5}
    assert accuracies(plain) == [
        "| model | accuracy | 95 % interval |",
        "|---|---|---|",
        "| base | 25.0 % | 10.0 % – 50.0 % |",
        "| vanilla DPO (the warm-up) | 50.0 % |  |",
    ]
    more = {"base_pass_at_8": 0.75, "base_pass_at_1": 0.3, "base_option_accuracy": 0.4, "base_retention_accuracy": 0.6}
    head, line, base, warmup = accuracies(plain | more | {"base_pass_at_8_low": 0.5})
    assert head.endswith("| pass@1 | pass@8 | by option | on the retention file |")
    assert line.count("---") == 7
    assert base.endswith("| 30.0 % | 75.0 % | 40.0 % | 60.0 % |")
    assert warmup.count("|") == base.count("|")


@pytest.mark.parametrize(
    ("licence", "front", "said"),
    [
        ("apache-2.0", 'license: "apache-2.0"', "The base is licensed as: apache-2.0."),
        (None, "license: unknown", "The base did not say how it is licensed."),
    ],
)
def test_a_card_says_the_method_and_how_the_base_is_licensed(licence: str | None, front: str, said: str) -> None:
    job = Job(id="ftjob-1", model="tiny", seed=0, sources={}, method={"type": "allo"})
    base = Model(id="tiny", files=[], origin={"license": licence})
    lines = card(JobView(job, (), {}), "main", base).decode().splitlines()
    assert front in lines
    assert said in lines
    assert any("after ALLO" in line for line in lines)


def test_the_model_of_each_round_has_a_line() -> None:
    metrics = {"base_accuracy": 0.25, "warmup_accuracy": 0.5, "warmup-2_accuracy": 0.6, "warmup-2_pass_at_4": 0.7}
    *_, last = accuracies(metrics)
    assert last == "| vanilla DPO (the warm-up), round 2 | 60.0 % |  | 70.0 % |"


def test_the_checkpoint_that_is_a_stages_result_is_told() -> None:
    best = {"steps": 40, "best_step": 12, "result_step": 12}
    mean = {"steps": 40, "best_step": 12, "result_step": 40, "averaged": 3, "scale": 0.5}
    *_, first, second, evaluate = section("Stages and settings", {"warmup": best, "warmup-2": mean})
    assert first == "- `warmup`; the result is the model behind step 12 of 40, the best on what was held out"
    assert second.endswith("is the mean of the last 3 checkpoints; of several scales 0.5 was the best on it")
    assert evaluate == "- `evaluate`"
    *_, asked, _, _ = section("Stages and settings", {"warmup": best | {"best_validation_accuracy": 0.45}})
    assert asked.endswith("behind step 12 of 40, the best on what was held out, of which it answers 45.0 % rightly")
    *_, start, _, _ = section("Stages and settings", {"warmup": best | {"best_step": 0, "result_step": 0}})
    assert start.endswith("the result is the model that it started from, the best on what was held out")
    *_, kept, _, _ = section("Stages and settings", {"warmup": best | {"result_step": 40}})
    assert kept.endswith("; the result is the last step, 40; the best on what was held out is that behind step 12")
