"""The page that shows what a job learned, of a finished job."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
from fastapi.testclient import TestClient

from service.pages.learned import ANSWERS
from tests.integration.pages.conftest import SignIn
from tests.integration.service.domain import ALLO, Domain
from tests.integration.service.taught import RESPONSE, evaluated, taught

LARGEST_PAGE = 200_000
HTMX = {"hx-request": "true"}
EVIL = "</q><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def text_of(page: str) -> str:
    """What a page says."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", page)))


def test_the_page_shows_every_models_accuracy_and_where_the_mask_lies(browser: TestClient, served: Domain) -> None:
    job = taught(served)
    page = browser.get(f"/ui/jobs/{job}/learned").text
    told = text_of(page)
    assert all(name in told for name in ("Base", "SFT", "Vanilla DPO (warm-up)", "Forgotten", "Aligned"))
    assert "75.0 % (30.1 to 95.4)" in told
    assert page.count('class="chart heat"') == 1
    assert re.findall(r'fill-opacity="([\d.]+)"', page) == ["0.50", "1.00", "0.00", "0.50"]
    assert "The darkest is 10.0" in told
    forget = browser.get(f"/ui/jobs/{job}/learned?mask=forget").text
    assert set(re.findall(r'fill-opacity="([\d.]+)"', forget)) == {"1.00"}
    assert browser.get(f"/ui/jobs/{job}/learned?mask=x").status_code == 422


def test_the_masks_of_the_last_round_are_shown_first(browser: TestClient, served: Domain) -> None:
    where = json.dumps({"layers": {"model.layers.0": {"mlp.up_proj": {"weights": 1000, "improve": 0.25}}}})
    fresh = {"sample": {"rounds": 2}, "locate": {"later_rounds": "fresh"}}
    path = f"/ui/jobs/{taught(served, {'locate-2': {'masks': {'where.json': where}}}, stages=fresh)}/learned"
    assert "The darkest is 25.0" in text_of(browser.get(path).text)
    assert "The darkest is 10.0" in text_of(browser.get(f"{path}?mask=improve").text)


def test_tokens_are_coloured_by_their_reward_and_the_forgotten_ones_marked(browser: TestClient, served: Domain) -> None:
    job = taught(served)
    page = browser.get(f"/ui/jobs/{job}/learned/responses", headers=HTMX).text
    assert "<html" not in page
    assert re.findall(r'<span class="([^"]*)" title="([^"]*)">([^<]*)</span>', page) == [
        ("p9", "P 0.900", "It"),
        ("p5", "P 0.500", " is"),
        ("p0 gone", "P 0.040, weight 1.00", " 3"),
        ("p0", "P 0.010", "&lt;|end|&gt;"),
    ]
    assert "4 tokens, 1 of them forgotten; the least likely: 3 0.040" in text_of(page)
    whole = browser.get(f"/ui/jobs/{job}/learned/responses").text
    assert "<html" in whole, "without a script it is a page of its own"


def test_changed_answers_stand_side_by_side_and_can_be_filtered_and_paged(browser: TestClient, served: Domain) -> None:
    rights = {"base": "0" * 25, "sft": "1" + "0" * 24, "improve": "0" + "1" * 24}
    path = f"/ui/jobs/{taught(served, {'evaluate': evaluated(rights)})}/learned/answers"
    first = browser.get(path, headers=HTMX).text
    assert "of 25 cases 24 were gained and 1 lost" in text_of(first)
    assert re.findall(r"ask case-(\d+)", first) == [str(place) for place in range(ANSWERS)]
    assert "sft says case-3" in first
    assert "improve says case-3" in first
    assert f"start={ANSWERS}" in first
    last = browser.get(path, params={"start": 2 * ANSWERS}, headers=HTMX).text
    assert re.findall(r"ask case-(\d+)", last) == ["20", "21", "22", "23", "24"]
    lost = browser.get(path, params={"change": "lost"}, headers=HTMX).text
    assert re.findall(r"ask case-(\d+)", lost) == ["0"]
    base = browser.get(path, params={"ours": "sft", "theirs": "base"}, headers=HTMX).text
    assert "1 were gained and 0 lost" in text_of(base)
    assert browser.get(path, params={"ours": "none"}).status_code == 422


def test_what_is_not_there_is_said(browser: TestClient, served: Domain) -> None:
    job = served.submit(ALLO).job.id
    assert "has not been evaluated yet" in text_of(browser.get(f"/ui/jobs/{job}/learned").text)
    assert "There are none to show" in text_of(browser.get(f"/ui/jobs/{job}/learned/responses").text)
    assert browser.get(f"/ui/jobs/{job}/learned/answers").status_code == 404


def test_another_owners_job_is_as_absent_as_one_that_is_not_there(sign_in: SignIn, served: Domain) -> None:
    job, other = taught(served), sign_in("another")
    for part in ("", "/responses", "/answers"):
        theirs, absent = (other.get(f"/ui/jobs/{name}/learned{part}") for name in (job, "ftjob-none"))
        assert (theirs.status_code, absent.status_code) == (404, 404)
        assert theirs.text.replace(job, "") == absent.text.replace("ftjob-none", "")


def test_no_text_of_a_job_is_more_than_text(browser: TestClient, served: Domain) -> None:
    response = {**RESPONSE, "problem": EVIL, "tokens": [EVIL, "", "\n", "é"]}
    findings = {
        "token_rewards": {"scores": {"examples.jsonl": json.dumps(response)}},
        "evaluate": evaluated({"base": "00", EVIL: "11"}, EVIL),
    }
    job = taught(served, findings)
    for part in ("", "/responses", "/answers"):
        page = browser.get(f"/ui/jobs/{job}/learned{part}").text
        assert EVIL in unescape(page)
        assert "<script>" not in page
        assert "<img" not in page


@pytest.mark.parametrize("text", ["word ", "<"])
def test_a_job_of_long_texts_has_small_pages(browser: TestClient, served: Domain, text: str) -> None:
    long = {**RESPONSE, "problem": text * 400, "tokens": [text] * 400, "probabilities": [0.04] * 400}
    long |= {"ends": [False] * 400, "length": 9000}
    layers = {
        f"model.layers.{n}": {f"mlp.{m}": {"weights": 10**7, "forget": 0.031, "improve": 0.0512} for m in range(9)}
        for n in range(126)
    }
    findings = {
        "locate": {"masks": {"where.json": json.dumps({"layers": layers})}},
        "token_rewards": {"scores": {"examples.jsonl": (json.dumps(long) + "\n") * 24}},
        "evaluate": evaluated({"sft": "0" * 50, "improve": "1" * 50}, text * 4000),
    }
    job = taught(served, findings)
    for part in ("", "/responses", "/answers"):
        page = browser.get(f"/ui/jobs/{job}/learned{part}")
        assert page.status_code == 200
        assert 5_000 < len(page.content) < LARGEST_PAGE, part
