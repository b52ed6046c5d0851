"""What every page keeps to, whatever people call their things and however many they have: texts are texts, and a page
is small."""

from __future__ import annotations

from urllib.parse import urlencode

from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.integration.pages.conftest import form_token
from tests.integration.pages.furnished import furnished, pages
from tests.integration.pages.test_job import Tags
from tests.integration.service.domain import Domain

MANY = 120
URLENCODED = {"content-type": "application/x-www-form-urlencoded"}


def test_every_page_is_small_and_has_every_name_as_text(app: FastAPI, browser: TestClient, served: Domain) -> None:
    found = list(pages(app, *furnished(served, MANY)))
    assert len(found) > 20
    for route, address in found:
        answer = browser.get(address, headers={"hx-request": "true"} if route.path.endswith("/live") else {})
        assert answer.status_code == 200, (route, answer.text)
        assert len(answer.content) < 200_000, (route, len(answer.content))
        tags = Tags(answer.text)
        assert "onerror" not in tags.attributes, route
        assert "<script>alert" not in answer.text, route


def test_what_is_not_among_the_newest_is_named(browser: TestClient, served: Domain) -> None:
    assert "Another file" not in browser.get("/ui/new").text
    for number in range(MANY):
        served.add_file(f"file-x{number:023}")
    page = browser.get("/ui/new").text
    assert "file-train" not in page
    assert "Training file: Another file&#39;s id" in page
    token = form_token(page)
    chosen = ("training_file", f"file-x{9:023}")
    form = [("model", "tiny"), chosen, ("method", "supervised"), ("seed", "-1"), ("form_token", token)]
    answer = browser.post("/ui/new", content=urlencode([*form, ("training_file", "file-train")]), headers=URLENCODED)
    assert answer.status_code == 422
    assert "<option selected>file-train</option>" in answer.text, "what was put in goes before what was chosen"
