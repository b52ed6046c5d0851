"""The page where models are tried, without a worker: test_serving.py has the answers."""

from __future__ import annotations

import re
from html import unescape

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.integration.pages.conftest import SignIn, form_token
from tests.integration.service.domain import Domain
from tests.integration.service.taught import taught
from tests.parts import GROWN

EVIL = "\"><script>alert(1)</script>'<img src=x onerror=alert(1)>"


def ask(browser: TestClient, model: str, token: str | None = None, **headers: str) -> httpx.Response:
    token = token or form_token(browser.get("/ui/jobs").text)
    body = {"model": model, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
    return browser.post("/ui/try/answer", json=body, headers={"x-form-token": token, "hx-request": "true", **headers})


def chosen(page: str) -> list[tuple[str, str]]:
    """The models that are chosen, as people call them and by name."""
    found = re.findall(r'>Model \d(?: · )?([^<]*)</label>\s*<input [^>]*? value="([^"]*)"', page)
    return [(kind, unescape(name)) for kind, name in found]


def test_a_job_brings_all_its_models_along_the_result_by_its_own_name(browser: TestClient, served: Domain) -> None:
    job = taught(served)
    kinds, names = zip(*chosen(browser.get("/ui/try", params={"job": job}).text), strict=True)
    assert kinds == ("Base", "SFT", "Vanilla DPO (warm-up)", "Forgotten", "Aligned")
    assert names[0] == "tiny"
    assert [name.rpartition(":ckpt-")[2] for name in names[1:4]] == ["sft", "warmup", "forget"]
    assert ":ckpt-" not in names[4]


def test_models_are_chosen_by_name_and_are_no_more_than_text(browser: TestClient) -> None:
    page = browser.get("/ui/try", params={"model": ["tiny", EVIL]}).text
    assert [name for _, name in chosen(page)] == ["tiny", EVIL, "", "", ""]
    assert "<script>" not in page
    assert "<img" not in page
    assert browser.get("/ui/try", params={"model": ["tiny"] * 6}).status_code == 422


def test_where_nobody_answers_a_line_says_why(browser: TestClient) -> None:
    answer = ask(browser, "tiny")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "text/plain; charset=utf-8")
    assert ("No worker is free to answer" if GROWN else "The broker does not answer") in answer.text


def test_another_owners_job_and_model_are_as_absent_as_none(
    sign_in: SignIn, browser: TestClient, served: Domain
) -> None:
    job, other = taught(served), sign_in("another")
    aligned = chosen(browser.get("/ui/try", params={"job": job}).text)[-1][1]
    for mine, absent in (
        (ask(other, aligned), ask(other, "none")),
        (other.get("/ui/try", params={"job": job}), other.get("/ui/try", params={"job": "ftjob-none"})),
    ):
        assert (mine.status_code, absent.status_code) == (404, 404)
        for name, other_name in ((aligned, "none"), (job, "ftjob-none")):
            assert mine.text.replace(name, other_name) == absent.text or name not in mine.text


@pytest.mark.parametrize(
    "headers", [{"origin": "https://elsewhere.example"}, {"x-form-token": "0" * 64}, {"sec-fetch-site": "cross-site"}]
)
def test_no_other_site_asks_in_somebodys_name(browser: TestClient, headers: dict[str, str]) -> None:
    assert ask(browser, "tiny", **headers).status_code == 403


def test_what_cannot_be_asked_is_refused_and_a_stranger_is_sent_to_sign_in(browser: TestClient) -> None:
    token = form_token(browser.get("/ui/jobs").text)
    for body in ({"model": "tiny"}, {"model": "tiny", "messages": [], "temperature": 3}):
        refused = browser.post("/ui/try/answer", json=body, headers={"x-form-token": token, "hx-request": "true"})
        assert (refused.status_code, "messages" in refused.text) == (422, True)
    browser.cookies.clear()
    assert ask(browser, "tiny", token).status_code == 401
