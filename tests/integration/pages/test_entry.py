"""Who may enter the dashboard, and what a session opens."""

from __future__ import annotations

import sqlite3
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from starlette.routing import Mount

from service.api.guard import PAGES
from service.db import Base
from service.jobs.access import sessions
from service.jobs.access.keys import create_key, list_keys, revoke_key, rotate_key
from service.pages.entry import TRIES_A_MINUTE
from service.storage.store import DiskFull
from tests.integration.pages.conftest import ORIGIN, SignIn, form_token
from tests.integration.service.domain import Domain

JOBS, LOGIN, LOGOUT = "/ui/jobs", "/ui/login", "/ui/logout"


@pytest.fixture
def stranger(app: FastAPI, served: Domain) -> TestClient:
    return TestClient(app, headers={"origin": ORIGIN}, follow_redirects=False)


def test_the_root_leads_to_the_jobs_by_way_of_the_login(stranger: TestClient) -> None:
    assert stranger.get("/").headers["location"] == JOBS
    assert stranger.get(f"{JOBS}?after=x").headers["location"] == "/ui/login?then=%2Fui%2Fjobs%3Fafter%3Dx"
    assert stranger.get(LOGIN).status_code == 200


def test_a_key_begins_a_session_whose_cookie_scripts_and_other_sites_cannot_use(
    stranger: TestClient, served: Domain
) -> None:
    secret = create_key(served.database, "owner").secret
    answer = stranger.post(LOGIN, data={"key": f" {secret}\n", "then": f"{JOBS}?status=running"})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{JOBS}?status=running")
    cookie = answer.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/ui", "max-age=604800"))
    assert "secure" not in cookie
    assert secret not in answer.headers["set-cookie"]
    assert stranger.get(JOBS).status_code == 200
    assert stranger.get(LOGIN).headers["location"] == JOBS, "nobody signs in twice"


def test_over_https_the_cookie_is_secure(app: FastAPI, served: Domain) -> None:
    client = TestClient(app, "https://testserver", headers={"origin": "https://testserver"}, follow_redirects=False)
    answer = client.post(LOGIN, data={"key": create_key(served.database, "owner").secret})
    assert "secure" in answer.headers["set-cookie"].lower()


def test_a_wrong_key_opens_nothing_and_few_may_be_tried(stranger: TestClient) -> None:
    began, tries = time.monotonic(), 0
    while (answer := stranger.post(LOGIN, data={"key": "allo-wrong"})).status_code == 401:
        assert "set-cookie" not in answer.headers
        tries += 1
    come_since = (time.monotonic() - began) * TRIES_A_MINUTE / 60
    assert answer.status_code == 429
    assert TRIES_A_MINUTE <= tries <= TRIES_A_MINUTE + come_since


@pytest.mark.parametrize("then", ["https://evil.example/", "//evil.example", "/ui//\\evil.example", "/v1/files", "x"])
def test_signing_in_leads_to_no_other_site(stranger: TestClient, served: Domain, then: str) -> None:
    key = create_key(served.database, "owner").secret
    location = stranger.post(LOGIN, data={"key": key, "then": then}).headers["location"]
    assert location == JOBS


def test_the_session_is_kept_as_a_hash(browser: TestClient, served: Domain) -> None:
    token = browser.cookies["allo_session"]
    with served.database.snapshot() as session:
        kept = [session.execute(select(table)).all() for table in Base.metadata.sorted_tables]
    assert token not in repr(kept)
    assert sessions.find_session(served.database, token)


def test_the_cookie_opens_nothing_but_pages_and_a_key_in_a_header_opens_no_page(
    browser: TestClient, stranger: TestClient, served: Domain
) -> None:
    token = browser.cookies["allo_session"]
    for path in ("/v1/fine_tuning/jobs", "/v1/files", "/metrics", "/api/models/a/b"):
        assert stranger.get(path, headers={"cookie": f"allo_session={token}"}).status_code == 401
    secret = create_key(served.database, "owner").secret
    assert stranger.get(JOBS, headers={"authorization": f"Bearer {secret}"}).status_code == 303


@pytest.mark.parametrize("end", [revoke_key, rotate_key])
def test_a_session_ends_with_its_key(browser: TestClient, served: Domain, end: object) -> None:
    (key,) = [key for key in list_keys(served.database) if "admin" in key.scopes]
    end(served.database, key.id)  # type: ignore[operator]
    assert browser.get(JOBS).headers["location"].startswith(LOGIN)


def test_a_session_ends_in_time_and_is_forgotten(served: Domain) -> None:
    key = create_key(served.database, "owner").secret
    past = sessions.sign_in(served.database, key, -1)
    assert past
    assert sessions.find_session(served.database, past.token) is None
    assert sessions.sign_in(served.database, "allo-wrong", 60) is None


def test_signing_out_ends_the_session_itself(browser: TestClient) -> None:
    token = browser.cookies["allo_session"]
    answer = browser.post(LOGOUT, data={"form_token": form_token(browser.get(JOBS).text)})
    assert answer.headers["location"] == LOGIN
    browser.cookies.set("allo_session", token, path="/ui")
    assert browser.get(JOBS).headers["location"].startswith(LOGIN)


def test_what_changes_something_must_come_from_a_page_of_ours(browser: TestClient) -> None:
    token = form_token(browser.get(JOBS).text)
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
    ):
        assert browser.post(LOGOUT, data={"form_token": token}, headers=headers).status_code == 403
        assert browser.post(LOGIN, data={"key": "x"}, headers=headers).status_code == 403
    assert browser.get(JOBS).status_code == 200, "still signed in"


def test_what_changes_something_must_bring_the_sessions_own_word(browser: TestClient, sign_in: SignIn) -> None:
    other = form_token(sign_in().get(JOBS).text)
    for fields in ({}, {"form_token": ""}, {"form_token": other}, {"form_token": "é"}):
        assert browser.post(LOGOUT, data=fields).status_code == 403
    word = {"x-form-token": form_token(browser.get(JOBS).text), "sec-fetch-site": "same-origin"}
    assert browser.post(LOGOUT, headers=word).status_code == 303, "as htmx sends it"


def test_scopes_hold_on_pages_too(sign_in: SignIn) -> None:
    meter = sign_in("owner", "metrics")
    answer = meter.get(JOBS)
    assert (answer.status_code, "scope" in answer.text) == (403, True)


def test_a_link_from_another_site_is_asked_for_again_with_the_cookie(stranger: TestClient) -> None:
    answer = stranger.get(JOBS, headers={"sec-fetch-site": "cross-site"})
    assert (answer.status_code, answer.headers["refresh"]) == (200, "0")


def test_a_script_whose_session_ended_is_led_to_the_login(stranger: TestClient) -> None:
    answer = stranger.get(JOBS, headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/ui/login?then=%2Fui%2Fjobs")


def test_every_answer_forbids_the_browser_what_no_page_needs(browser: TestClient) -> None:
    for path in (JOBS, LOGIN, "/ui/absent", "/ui/static/allo.css"):
        headers = browser.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    assert browser.get(JOBS).headers["cache-control"] == "no-store"


def test_pages_that_there_are_not_say_so(browser: TestClient) -> None:
    answer = browser.get("/ui/absent")
    assert (answer.status_code, "There is no such page." in answer.text) == (404, True)
    assert browser.get("/ui/jobs?after=x").status_code == 404


def _sqlite_full() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


@pytest.mark.parametrize(
    "error",
    [
        DiskFull(28, "No space left on device"),
        OSError(28, "No space left on device"),
        OperationalError("", {}, _sqlite_full()),
    ],
)
def test_a_full_disk_is_told_as_one_whoever_met_it(app: FastAPI, browser: TestClient, error: Exception) -> None:
    (pages,) = (route.app for route in app.routes if isinstance(route, Mount) and route.path == PAGES)
    assert isinstance(pages, FastAPI)

    @pages.get("/full")
    def full() -> None:
        raise error

    answer = browser.get("/ui/full")
    assert answer.status_code == 507
    assert "disk is full" in answer.text
