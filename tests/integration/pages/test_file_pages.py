"""The pages of data: the list, an upload, a file with its bad lines, and what it is to a model."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from service.jobs.tables import File
from service.pages.charts import histogram
from service.pages.files import AT_ONCE, FURTHEST, PROBLEMS
from service.pages.rendering import render
from tests.integration.pages.conftest import SignIn, form_token
from tests.integration.pages.test_learned_pages import EVIL, HTMX, LARGEST_PAGE, text_of
from tests.integration.service.domain import Domain

ROW = {"problem": "1+1?", "solution": "It is 2", "answer": "2"}


def upload(browser: TestClient, *rows: Any, name: str = "train.jsonl") -> str:
    """The path of the page that it leads to."""
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    headers = {**HTMX, "x-form-token": form_token(browser.get("/ui/files").text)}
    answer = browser.post("/ui/files", data={"purpose": "fine-tune"}, files={"file": (name, content)}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.headers["hx-redirect"]


def test_an_uploaded_file_is_listed_has_a_page_and_goes_when_it_is_deleted(browser: TestClient) -> None:
    path = upload(browser, ROW, ROW)
    assert path in browser.get("/ui/files").text
    told = text_of(browser.get(path).text)
    assert all(words in told for words in ("train.jsonl", "processed", "problems", "Rows 2", "Duplicates 1"))
    token = form_token(browser.get(path).text)
    assert browser.post(f"{path}/delete", data={}).status_code == 403
    answer = browser.post(f"{path}/delete", data={"form_token": token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/files")
    assert browser.get(path).status_code == 404


def test_bad_lines_are_listed_with_what_would_be_right(browser: TestClient) -> None:
    path = upload(browser, ROW, *({"problem": "", "solution": "x"} for _ in range(PROBLEMS)), '{"problem": 1, "solu')
    assert "error" in text_of(browser.get(path).text)
    first = browser.get(f"{path}/problems", headers=HTMX).text
    assert "2 problem is empty a text that is not empty" in text_of(first)
    assert (first.count('<th scope="row"'), f"start={PROBLEMS}" in first) == (PROBLEMS, True)
    last = browser.get(f"{path}/problems?start={PROBLEMS}").text
    assert (last.count('<th scope="row"'), "start=0" in last) == (1, True)
    assert "No more." in browser.get(f"{path}/problems?start={FURTHEST}").text


def test_an_upload_must_come_from_our_script_with_the_sessions_word(browser: TestClient, sign_in: SignIn) -> None:
    token, file = form_token(browser.get("/ui/files").text), {"file": ("f.jsonl", json.dumps(ROW))}
    fields = {"purpose": "fine-tune", "form_token": token}
    assert browser.post("/ui/files", data=fields, files=file).status_code == 403
    headers = {"x-form-token": token}
    elsewhere = {**headers, "origin": "https://evil.example"}
    assert browser.post("/ui/files", data=fields, files=file, headers=elsewhere).status_code == 403
    reader = sign_in("owner", "read")
    headers["x-form-token"] = form_token(reader.get("/ui/files").text)
    assert reader.post("/ui/files", data=fields, files=file, headers=headers).status_code == 403
    assert "hx-post" not in reader.get("/ui/files").text
    assert browser.post("/ui/files", data={"x": "y"}, headers={"x-form-token": token}).status_code == 415


def test_what_a_file_is_to_a_model_is_shown_with_the_trained_tokens_marked() -> None:
    spread = {"min": 3, "median": 4, "p95": 7, "max": 9}
    tokens = {"lines": 2, "lines_measured": 2, "sequences": 2, "model_length": 8, "longer_than_model": 1}
    tokens |= {"prompt": spread, "response": spread, "total": spread}
    segments = [{"text": f"<|user|>{EVIL}", "trained": False}, {"text": "It is 2<|end|>", "trained": True}]
    line = {"line": 1, "sequences": [{"of": "response", "tokens": 9, "trained_tokens": 4, "segments": segments}]}
    insight = {"tokens": tokens, "preview": [line], "overlap": {"lines": 1, "prompts": 1}}
    chart = histogram("Lengths", [1, 1], 5, "tokens")
    request = Request({"type": "http", "path": "/ui/files/x", "headers": [], "query_string": b"", "state": {}})
    values = {"file": File(id="file-x", filename="f"), "model": "m", "validation_file": "v", "refused": None}
    found = render(request, "file_insight.html", frame="part.html", insight=insight, chart=chart, **values)
    assert "<mark>It is 2&lt;|end|&gt;</mark>" in found
    assert 'class="chart histogram"' in found
    told = text_of(found)
    assert "1 are longer than the 8 tokens" in told
    assert "1 lines of the other file stand in this one too, and 1 of its prompts." in told
    assert "Both 3 4 7 9" in told
    assert EVIL in unescape(found)
    assert "<script>" not in found


def test_what_cannot_be_looked_into_says_why(browser: TestClient) -> None:
    path = upload(browser, ROW)
    assert f"{path}/insight?model=tiny" in unescape(browser.get(path).text), "the registered model is suggested"
    for query, why in (("model=none", "does not exist"), ("model=tiny&validation_file=file-x", "file-x")):
        assert why in browser.get(f"{path}/insight?{query}", headers=HTMX).text


def test_another_owners_file_is_as_absent_as_one_that_is_not_there(browser: TestClient, sign_in: SignIn) -> None:
    path, other = upload(browser, ROW), sign_in("another")
    file_id = path.rpartition("/")[2]
    assert path not in other.get("/ui/files").text
    for part in ("", "/problems", "/insight?model=tiny"):
        theirs, absent = other.get(f"{path}{part}"), other.get(f"/ui/files/file-none{part}")
        assert (theirs.status_code, absent.status_code) == (404, 404)
        assert theirs.text.replace(file_id, "") == absent.text.replace("file-none", "")
    headers = {"x-form-token": form_token(other.get("/ui/files").text)}
    assert other.post(f"{path}/delete", headers=headers).status_code == 404
    assert browser.get(path).status_code == 200


def test_names_are_texts_and_long_lists_are_paged(browser: TestClient, served: Domain) -> None:
    for number in range(AT_ONCE):
        served.add_file(f"file-{number:024}", filename=EVIL * 4)
    page = browser.get("/ui/files")
    assert "<script>alert" not in page.text
    assert EVIL in unescape(page.text)
    assert len(page.content) < LARGEST_PAGE
    (after,) = re.findall(r'href="(\?after=[^"]*)" rel="next"', page.text)
    assert browser.get(f"/ui/files{unescape(after)}").status_code == 200


@pytest.mark.parametrize("path", ["/ui/files?after=x", "/ui/files/file-train/problems?start=-1"])
def test_a_page_that_cannot_be_is_no_error_of_ours(browser: TestClient, path: str) -> None:
    assert browser.get(path).status_code in (404, 422)
