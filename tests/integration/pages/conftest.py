"""A browser without a screen: the dashboard's app, and somebody who is signed in."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.jobs.access.keys import Scope, create_key
from tests.apps import app_over
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import OWNER, Domain, furnish
from tests.parts import Parts

ORIGIN = "http://testserver"

SignIn = Callable[..., TestClient]


@pytest.fixture
def app(tmp_path: Path, sqlite: Path, parts: Parts) -> Iterator[FastAPI]:
    with parts() as named, app_over(sqlite, tmp_path, SilentBroker(), **named) as app:
        yield app


@pytest.fixture
def served(app: FastAPI) -> Domain:
    """What lies behind the app."""
    return furnish(app.state.context.database, app.state.context.store)


@pytest.fixture
def sign_in(app: FastAPI, served: Domain) -> SignIn:
    """Signs somebody in: of the owner and with every scope, where nothing else is said."""

    def signed_in(owner: str = OWNER, *scopes: Scope) -> TestClient:
        client = TestClient(app, headers={"origin": ORIGIN}, follow_redirects=False)
        key = create_key(served.database, owner, scopes or ("admin",)).secret
        assert client.post("/ui/login", data={"key": key}).status_code == 303
        return client

    return signed_in


@pytest.fixture
def browser(sign_in: SignIn) -> TestClient:
    """The owner's."""
    return sign_in()


def form_token(page: str) -> str:
    """The word that forms of this page send along."""
    (found,) = set(re.findall(r'name="form_token" value="([0-9a-f]{64})"', page))
    return found


def send(browser: TestClient, path: str, **fields: str) -> httpx.Response:
    """A form of ours, sent."""
    token = form_token(browser.get("/ui/jobs").text)
    return browser.post(path, data={**fields, "form_token": token})
