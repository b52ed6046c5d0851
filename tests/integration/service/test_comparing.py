"""Models of several jobs against each other, by what their reports say of each held-out case."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from sqlalchemy import update

from service.jobs.comparison import LARGEST_REPORTS, compare
from service.jobs.errors import Conflict, DomainError, InvalidRequest, NotFound
from service.jobs.running import attempts
from service.jobs.tables import Artifact
from tests import asking
from tests.integration.service.domain import OWNER, SUPERVISED, Domain

CASES = [f"case-{number}" for number in range(8)]
_others = count()


def row(model: str, right: str, **more: Any) -> dict[str, Any]:
    """`right` has a 1 for each case that is right."""
    return {"model": model, "cases": [digit == "1" for digit in right], **more}


def reported(domain: Domain, *rows: dict[str, Any], seed: int = 0, cases: list[str] | None = CASES) -> str:
    """A job whose evaluation found that; its models answered in words."""
    settings = {"evaluate": {"examples": next(_others)}}  # no other job's result is its own
    job = domain.submit(replace(SUPERVISED, seed=seed, stages=settings)).job.id
    claimed = domain.claim()
    if claimed.name == "sft":
        assert domain.finish(claimed)
        claimed = domain.claim()
    report = {"models": list(rows), **({} if cases is None else {"cases": cases})}
    answers = [
        {
            "case": case,
            "problem": f"ask {case}",
            "models": {one["model"]: {"answer": f"{one['model']} of {seed} says {case}"} for one in rows},
        }
        for case in cases or []
    ]
    written = {"report.json": json.dumps(report), "texts.jsonl": "".join(json.dumps(one) + "\n" for one in answers)}
    blobs = {path: domain.store.put_stream([text.encode()]) for path, text in written.items()}
    files = [("report", path, blob.sha256, blob.size) for path, blob in blobs.items()]
    assert attempts.finish(domain.database, domain.store, claimed.stage_id, claimed.epoch, files, {})
    assert len(domain.view(job).job.result_files) == 1, "the report alone"
    return job


def compared(domain: Domain, ours: list[str], theirs: list[str]) -> dict[str, Any]:
    return compare(domain.database, domain.store, OWNER, ours, theirs)


def test_two_jobs_are_compared_on_the_cases_that_they_share_whatever_their_order(domain: Domain) -> None:
    ours = reported(domain, row("base", "00000000"), row("sft", "11110000"))
    theirs = reported(domain, row("base", "00000000"), row("sft", "0011111"), cases=[*CASES[6:0:-1], "another"])
    found = compared(domain, [ours], [f"{theirs}:sft"])
    # shared are cases 1 to 6: ours 1, 1, 1, 0, 0, 0 and theirs, read backwards, 1, 1, 1, 1, 0, 0
    assert (found["cases"], found["left_out"]) == (6, 3)
    (accuracy,) = found["measures"]
    assert (accuracy["ours"], accuracy["theirs"]) == (pytest.approx(3 / 6), pytest.approx(4 / 6))
    assert accuracy["difference"] == pytest.approx(-1 / 6)
    assert accuracy["low"] < accuracy["difference"] < accuracy["high"]
    changed = found["changed"]
    assert (changed["gained"], changed["lost"], changed["differing"]) == (0, 1, 1)
    (answer,) = changed["shown"]
    assert answer["case"] == "case-4"
    assert (answer["problem"], answer["ours"]) == ("ask case-4", "sft of 0 says case-4")


def test_a_job_without_a_model_named_stands_for_its_last_and_models_of_one_job_compare(domain: Domain) -> None:
    job = reported(domain, row("base", "10000000"), row("sft", "11100000"))
    found = compared(domain, [job], [f"{job}:base"])
    assert found["pairs"] == [{"ours": f"{job}:sft", "theirs": f"{job}:base", "seeds": [0, 0]}]
    assert found["measures"][0]["difference"] == pytest.approx(2 / 8)


def test_runs_of_several_seeds_are_paired_by_seed_and_their_luck_widens_the_interval(domain: Domain) -> None:
    rights = {0: ("11111111", "11110000"), 1: ("11110000", "11110000"), 2: ("11110000", "11111100")}
    ours = [reported(domain, row("sft", right), seed=seed) for seed, (right, _) in rights.items()]
    theirs = [reported(domain, row("sft", right), seed=seed) for seed, (_, right) in reversed(rights.items())]
    found = compared(domain, ours, theirs)
    assert [pair["seeds"] for pair in found["pairs"]] == [[0, 0], [1, 1], [2, 2]]
    (accuracy,) = found["measures"]
    assert accuracy["difference"] == pytest.approx((4 + 0 - 2) / 24)
    alone = compared(domain, ours[:1], theirs[2:])["measures"][0]
    assert alone["low"] > 0, "one seed alone would have been believed"
    assert accuracy["low"] < 0 < accuracy["high"]
    assert (found["changed"]["gained"], found["changed"]["lost"]) == (4, 2)


def test_every_measure_that_both_reports_have_is_compared(domain: Domain) -> None:
    options = {"option_cases": [None, True, True, True, False, False, False, None]}
    sampled = {"samples": 4, "sampled_right": [4, 2, 0, 0, 0, 0, 0, 0], "pass_at_1": 0.1, "pass_at_2": 0.2}
    none = {"samples": 2, "sampled_right": [0] * 8, "pass_at_1": 0.0, "pass_at_2": 0.0}
    ours = reported(domain, row("sft", "1" * 8, losses=[1.0] * 8, **options, **sampled))
    theirs = reported(domain, row("sft", "1" * 8, losses=[1.5] * 8, option_cases=[False] * 8, **none))
    found = {measure["measure"]: measure for measure in compared(domain, [ours], [theirs])["measures"]}
    assert list(found) == ["accuracy", "pass@1", "pass@2", "option_accuracy", "cross_entropy"]
    assert found["pass@1"]["ours"] == pytest.approx((1 + 2 / 4) / 8)
    assert found["pass@2"]["ours"] == pytest.approx((1 + 1 - 1 / 6) / 8)  # of 6 pairs one holds no right response
    assert (found["option_accuracy"]["cases"], found["option_accuracy"]["ours"]) == (6, 0.5)
    assert (found["cross_entropy"]["difference"], found["cross_entropy"]["better"]) == (pytest.approx(-0.5), "lower")


def test_what_cannot_be_compared_says_why(domain: Domain) -> None:
    job = reported(domain, row("sft", "1" * 8))
    elsewhere = reported(domain, row("sft", "1"), cases=["elsewhere"])
    early = reported(domain, row("sft", "1" * 8), cases=None)
    waiting = domain.submit(replace(SUPERVISED, seed=9)).job.id
    unevaluated = domain.submit(replace(SUPERVISED, validation_file=None)).job.id
    refusals: list[tuple[list[str], list[str], type[DomainError], str]] = [
        ([job], ["ftjob-none"], NotFound, "ftjob-none"),
        ([job], [f"{job}:improve"], NotFound, "it has sft"),
        ([job], [job, job], InvalidRequest, "as many"),
        ([job], [elsewhere], Conflict, "nothing in common"),
        ([job], [early], Conflict, "run it anew"),
        ([waiting], [job], Conflict, "no report yet"),
        ([unevaluated], [job], Conflict, "validation_file"),
    ]
    for ours, theirs, kind, message in refusals:
        with pytest.raises(kind, match=message):
            compared(domain, ours, theirs)


def test_reports_that_together_are_too_large_are_not_read(domain: Domain) -> None:
    job = reported(domain, row("sft", "1" * 8))
    with domain.database.transaction() as session:
        session.execute(update(Artifact).where(Artifact.path == "report.json").values(bytes=LARGEST_REPORTS // 8 + 1))
    with pytest.raises(Conflict, match="of so many runs"):
        compared(domain, [job] * 4, [job] * 4)
    with pytest.raises(NotFound, match="ftjob-none"):
        compared(domain, [job], ["ftjob-none"])


def test_the_route_takes_several_runs_and_shows_nobody_elses(base_url: str, served: Domain, secret: str) -> None:
    ours, theirs = (reported(served, row("sft", right)) for right in ("11110000", "11000000"))
    url, headers = f"{base_url}/fine_tuning/jobs/compare", {"authorization": f"Bearer {secret}"}
    asked: list[tuple[str, str | int | float | bool | None]] = [("ours", ours), ("ours", ours)]
    asked += [("theirs", theirs), ("theirs", f"{theirs}:sft")]
    answer = asking.get(url, params=asked, headers=headers)
    assert answer.status_code == 200
    assert [pair["theirs"] for pair in answer.json()["pairs"]] == [f"{theirs}:sft"] * 2
    assert asking.get(url, params={"ours": ours}, headers=headers).status_code == 422
    unknown = asking.get(url, params={"ours": ours, "theirs": "ftjob-x"}, headers=headers)
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "theirs")
