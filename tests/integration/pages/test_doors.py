"""What holds for every page there is: nobody gets in without a session, a word of it, and a scope."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.routing import Mount

from service.api.audited import CHANGING
from tests.integration.pages.conftest import ORIGIN, SignIn, form_token
from tests.integration.service.routes import Route, every_route

BODIES: dict[str, Any] = {"/files": {"files": {"file": b"x"}}, "/try/answer": {"json": {}}}
"""Of routes that look at the kind of a body first."""

OPEN = ("/static/{name}", "/login", "/logout")


@pytest.fixture
def routes(app: FastAPI) -> list[Route]:
    """Every page and action but those that anybody has."""
    (pages,) = (route.app for route in app.routes if isinstance(route, Mount))
    assert isinstance(pages, FastAPI)
    found = [route for route in every_route(pages) if route.path not in OPEN]
    assert len(found) > 30
    return found


def test_a_stranger_is_led_to_the_login_from_everywhere(app: FastAPI, routes: list[Route], sign_in: SignIn) -> None:
    stranger = TestClient(app, headers={"origin": ORIGIN}, follow_redirects=False)
    for route in routes:
        answer = stranger.request(route.method, f"/ui{route.at()}")
        assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/ui/login"), route


def test_nothing_is_changed_without_the_sessions_own_word(browser: TestClient, routes: list[Route]) -> None:
    word = {"x-form-token": form_token(browser.get("/ui/jobs").text)}
    for route in routes:
        if route.method in CHANGING:
            path = f"/ui{route.at()}"
            assert browser.request(route.method, path).status_code == 403, route
            elsewhere = {**word, "origin": "https://evil.example"}
            assert browser.request(route.method, path, headers=elsewhere).status_code == 403, route


def test_a_key_without_scopes_sees_and_does_nothing(sign_in: SignIn, routes: list[Route]) -> None:
    meter = sign_in("owner", "metrics")
    word = {"x-form-token": form_token(meter.get("/ui/jobs").text)}
    for route in routes:
        body = BODIES.get(route.path, {}) if route.method == "POST" else {}
        assert meter.request(route.method, f"/ui{route.at()}", headers=word, **body).status_code == 403, route


def test_an_error_that_nobody_foresaw_is_told_as_a_page_with_its_id(app: FastAPI, browser: TestClient) -> None:
    (pages,) = (route.app for route in app.routes if isinstance(route, Mount))
    assert isinstance(pages, FastAPI)

    @pages.get("/breaks")
    def breaks() -> None:
        raise ZeroDivisionError("a secret of the house")

    answer = browser.get("/ui/breaks")
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.text
    assert "secret" not in answer.text
    assert "content-security-policy" in answer.headers
