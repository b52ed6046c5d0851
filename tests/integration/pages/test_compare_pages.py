"""Jobs beside one another: what differs, what came of it, their curves, and two models case by case."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest
from fastapi.testclient import TestClient

from service.jobs.sweeping import sweeps
from service.pages.compare import MOST, POINTS
from tests.integration.pages.conftest import SignIn
from tests.integration.pages.test_learned_pages import EVIL, HTMX, LARGEST_PAGE, text_of
from tests.integration.service.domain import SUPERVISED, Domain
from tests.integration.service.taught import evaluated, taught, told
from tests.integration.service.test_sweeps import run_all

OTHER = {"evaluate": evaluated({"base": "0000", "sft": "1010", "improve": "0111"})}


def test_results_and_settings_that_differ_stand_beside_one_another(browser: TestClient, served: Domain) -> None:
    one = taught(served, suffix="first")
    other = taught(served, OTHER, seed=3, stages={"improve": {"beta": 0.5}})
    page = browser.get(f"/ui/compare?job={one}&job={other}&job={one}").text
    shown = text_of(page)
    assert "Accuracy 75.0 % (30.1 to 95.4) 75.0 % (30.1 to 95.4)" in shown
    assert "seed 0 3 " in shown
    assert "improve.beta 0.1 0.5 " in shown
    assert "sft.seed" not in shown
    assert "improve.filter" not in shown
    assert "A first" in shown
    assert f"B {other}" in shown


def test_two_models_are_compared_case_by_case(browser: TestClient, served: Domain) -> None:
    one, other = taught(served), taught(served, OTHER, seed=3)
    path = f"/ui/compare/paired?ours={other}:improve&theirs={one}:improve"  # 0111 against 1101
    page = browser.get(path, headers=HTMX).text
    assert "<html" not in page
    shown = text_of(page)
    assert "On 4 cases that both were put to." in shown
    assert "accuracy 0.75 0.75 +0.0000" in shown
    assert "1 answers were gained and 1 lost." in shown
    assert "improve says case-2" in shown
    assert "<html" in browser.get(path).text
    assert browser.get(f"/ui/compare/paired?ours={one}:none&theirs={one}").status_code == 404
    assert browser.get(f"/ui/compare/paired?ours=ftjob-x&theirs={one}").status_code == 404


def test_curves_are_the_series_thinned_out_with_their_ends(browser: TestClient, served: Domain) -> None:
    job = served.submit(SUPERVISED).job.id
    told(served, job, *({"stage": "sft", "step": step, "loss": 1 / step} for step in range(1, 2 * POINTS + 4)))
    other = served.submit(replace(SUPERVISED, seed=1)).job.id
    found = browser.get(f"/ui/compare/curves?job={job}&job={other}&stage=sft").json()
    assert found[1] == {"steps": [], "figures": {}}
    steps = found[0]["steps"]
    assert (len(steps), steps[0], steps[-1]) == (POINTS, 1, 2 * POINTS + 3)
    assert found[0]["figures"] == {"loss": [1 / step for step in steps]}
    assert browser.get(f"/ui/compare/curves?job={job}&stage=improve").json() == [{"steps": [], "figures": {}}]
    assert browser.get("/ui/compare/curves?job=ftjob-x&stage=sft").status_code == 404


def test_of_a_sweep_the_best_points_come_first_with_their_figures(browser: TestClient, served: Domain) -> None:
    values = {"seed": list(range(MOST + 2))}
    sweep = sweeps.submit(served.database, served.store, SUPERVISED, values, served.sender(), ())
    run_all(served, lambda claimed: {"sft_accuracy": served.view(claimed.job_id).job.seed / 10})
    page = text_of(browser.get(f"/ui/compare?sweep={sweep.id}").text)
    columns = re.findall(r"([A-F]) seed (\d)", page)[:MOST]
    assert columns == [(letter, str(7 - place)) for place, letter in enumerate("ABCDEF")]
    assert re.findall(r"accuracy ([\d.]+) %", page) == [f"{10 * place}.0" for place in range(7, -1, -1)]


def test_of_a_sweep_the_first_points_are_compared_by_their_settings(browser: TestClient, served: Domain) -> None:
    values = {"sft.learning_rate": [1e-5, 1e-4, 1e-3, 2e-3], "seed": [1, 2]}
    sweep = sweeps.submit(served.database, served.store, SUPERVISED, values, served.sender(), ())
    page = browser.get(f"/ui/compare?sweep={sweep.id}").text
    assert page.count('type="checkbox"') == 8
    assert page.count(" checked") == MOST
    assert "A sft.learning_rate 1e-05, seed 1" in text_of(page)
    assert "The sweep has 8 points. These are the six that are best" in text_of(page)
    assert f'href="/ui/compare?sweep={sweep.id}"' in browser.get(f"/ui/jobs/{sweep.jobs[0].id}").text
    last = sweep.jobs[-1].id
    assert f'value="{last}" checked' in browser.get(f"/ui/compare?sweep={sweep.id}&job={last}").text


@pytest.mark.parametrize("count", [0, 1, 7])
def test_two_to_six_jobs_are_compared(browser: TestClient, served: Domain, count: int) -> None:
    ids = [served.submit(replace(SUPERVISED, seed=seed)).job.id for seed in range(count)]
    answer = browser.get("/ui/compare", params={"job": ids})
    told = (
        "Six are compared at once, and 7 are chosen: take 1 of them out." if count > MOST else "Choose two to six jobs."
    )
    assert told in text_of(answer.text)
    assert answer.text.count(" checked") == count
    assert 'id="results"' not in answer.text


def test_jobs_to_compare_are_searched_for_and_what_is_chosen_stays(browser: TestClient, served: Domain) -> None:
    ids = {name: served.submit(replace(SUPERVISED, suffix=name)).job.id for name in ("one", "another", "third")}
    page = browser.get("/ui/compare", params={"job": ids["one"], "text": "THIR"}).text
    assert re.findall(r'value="(ftjob-[^"]*)"( checked)?', page) == [(ids["one"], " checked"), (ids["third"], "")]


def test_another_owners_jobs_are_as_absent_as_those_that_are_not_there(sign_in: SignIn, served: Domain) -> None:
    job, other = taught(served), sign_in("another")
    assert job not in other.get("/ui/compare").text
    for path in ("?job={0}", "/curves?job={0}&stage=sft", "/paired?ours={0}&theirs={0}", "?sweep={0}"):
        theirs, absent = (other.get(f"/ui/compare{path.format(name)}") for name in (job, "ftjob-none"))
        assert (theirs.status_code, absent.status_code) == (404, 404)
        assert theirs.text.replace(job, "") == absent.text.replace("ftjob-none", "")


def test_no_text_of_a_job_is_more_than_text_and_pages_stay_small(browser: TestClient, served: Domain) -> None:
    long = evaluated({"sft": "0" * 50, "improve": "1" * 50}, EVIL * 100)
    prefix = {"evaluate": {"option_prefix": EVIL}}
    ids = [taught(served, {"evaluate": long}, stages=prefix if seed else {}, seed=seed) for seed in range(2)]
    pages = [browser.get("/ui/compare", params={"job": ids})]
    pages.append(browser.get("/ui/compare/paired", params={"ours": f"{ids[0]}:improve", "theirs": f"{ids[1]}:sft"}))
    for page in pages:
        assert EVIL in unescape(page.text)
        assert "<script>" not in page.text
        assert len(page.content) < LARGEST_PAGE
