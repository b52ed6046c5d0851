"""The dashboard in a real Chromium, over a real socket.

Chromium is Debian's (`apt-get install chromium`). Without one the tests are skipped, and fail where REQUIRE_BROWSER is
set, as it is in continuous integration. With SCREENSHOTS=folder they leave pictures there: `make pictures` renews those
that the README shows.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from service.api.guard import COOKIE
from service.app import create_app
from service.jobs.access.keys import Scope, create_key
from service.jobs.access.sessions import sign_in
from service.settings import Settings
from tests.apps import NOBODY_DIES, on_a_port
from tests.integration.service.conftest import SilentBroker
from tests.integration.service.domain import OWNER, Domain, furnish
from tests.waiting import PATIENCE, until

AXE = Path(__file__).parent / "axe"

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

REFUSED = (
    "Failed to load resource",
    "Response Status Error Code",
    "htmx:afterRequest",
    "htmx:sendAbort",
    "htmx:sendError",
    "htmx:responseError",
)
"""What the console says of answers that are errors, or do not come, or are no longer wanted: tests want those."""

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")  # an event loop runs in this thread for as long, and other tests want their own
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        reason = "There is no chromium: apt-get install chromium."
        pytest.fail(reason) if os.environ.get("REQUIRE_BROWSER") else pytest.skip(reason)
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass(frozen=True)
class Site:
    """The dashboard's app behind a real server; one for several tests, so that none may count on it being empty.
    `domain` is what lies behind it, and a worker's hands."""

    app: FastAPI
    address: str
    domain: Domain

    def token(self, owner: str = OWNER, *scopes: Scope) -> str:
        """A session of somebody: with every scope, where nothing else is said."""
        key = create_key(self.domain.database, owner, scopes or ("admin",)).secret
        made = sign_in(self.domain.database, key, 3600)
        assert made is not None
        return made.token


@contextmanager
def site_in(folder: Path, **settings: Any) -> Iterator[Site]:
    """A dashboard with a data folder of its own."""
    here = {"min_free_bytes": 0, "max_active_jobs": 1000, "broker_url": "redis://127.0.0.1:1/0"}
    app = create_app(Settings(**{"data_dir": folder, **here, **NOBODY_DIES, **settings}), SilentBroker())
    domain = furnish(app.state.context.database, app.state.context.store)
    with on_a_port(app) as port:
        yield Site(app, f"http://127.0.0.1:{port}", domain)
        app.state.context.feed.close()  # a server waits for what is open


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """With nobody who answers at its broker's address."""
    with site_in(tmp_path_factory.mktemp("site")) as site:
        yield site


Browse = Callable[..., Page]
Visit = Callable[..., Page]


@pytest.fixture
def browse(chromium: Browser) -> Iterator[Browse]:
    """Opens a page of the service at this address, in a browser of its own that may have a session. Whatever a page's
    console complains of fails the test: a script that broke, and what the policy forbade."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def opened(address: str, path: str, token: str | None = None, **options: Any) -> Page:
        usual = {"base_url": address, "viewport": DESK, "locale": "en-GB"}
        context = chromium.new_context(**{**usual, **options})
        context.set_default_timeout(PATIENCE * 1000)
        contexts.append(context)
        if token is not None:
            context.add_cookies([{"name": COOKIE, "value": token, "url": f"{address}/ui"}])
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [text for text in complaints if not text.startswith(REFUSED)] == []


@pytest.fixture
def visit(browse: Browse, site: Site) -> Visit:
    """Opens a page of the dashboard: of the owner with every scope, where nothing else is said."""

    def opened(path: str, owner: str | None = OWNER, *scopes: Scope, **options: Any) -> Page:
        token = None if owner is None else site.token(owner, *scopes)
        return browse(options.pop("base_url", site.address), path, token, **options)

    return opened


@cache
def _axe() -> str:
    return (AXE / "axe.min.js").read_text()


def assert_accessible(page: Page) -> None:
    """axe-core (Deque) finds nothing on the page, and in the dark no colour that is hard to read."""
    page.evaluate(_axe())
    for scheme, rules in (("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        found = page.evaluate(f"axe.run({rules})")["violations"]
        told = [(one["id"], [node["html"][:200] for node in one["nodes"]], one["help"]) for one in found]
        assert found == [], f"{scheme}: {json.dumps(told, indent=1)}"
    page.emulate_media(color_scheme="light")


def assert_fits(page: Page) -> None:
    """Nothing makes the page itself wider than a phone."""
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    until(lambda: page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"])  # charts follow their frame
    page.set_viewport_size(DESK)  # type: ignore[arg-type]


def photograph(page: Page, name: str, top: str = "body", height: int = 720) -> None:
    """Leaves a picture of the page from an element on, where somebody asked for pictures: one for a README."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.set_viewport_size({"width": 1120, "height": height})
        page.locator(top).evaluate("element => element.scrollIntoView({block: 'start', behavior: 'instant'})")
        page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")
        page.set_viewport_size(DESK)  # type: ignore[arg-type]
