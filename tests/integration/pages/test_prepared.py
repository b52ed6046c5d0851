"""What the first who asks for a page would wait for is done before."""

from __future__ import annotations

import threading

from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.event import listen
from starlette.routing import Mount

from allo_engine.pipeline import METHODS
from service.pages import fields, rendering
from service.pages.app import prepare
from tests.apps import on_a_port
from tests.integration.service.domain import SUPERVISED, Domain
from tests.waiting import until


def test_a_process_makes_its_pages_ready_behind_its_start(app: FastAPI) -> None:
    made = (rendering.template, fields.shared_of, fields.stages_of)
    for one in made:
        one.cache_clear()
    with on_a_port(app):
        until(lambda: fields.shared_of.cache_info().currsize == len(METHODS))
    assert rendering.template.cache_info().currsize == len(list(rendering.TEMPLATES.glob("*.html")))


def test_what_a_jobs_page_asks_the_database_was_asked_before(app: FastAPI, browser: TestClient, served: Domain) -> None:
    job, asked = served.submit(SUPERVISED).job.id, set[str]()
    listen(served.database.engine, "before_cursor_execute", lambda *given: asked.add(given[2]))
    browser.get("/ui/keys")  # who is signed in is asked for every page
    (pages,) = (route.app for route in app.routes if isinstance(route, Mount))
    assert isinstance(pages, FastAPI)
    prepare(pages, threading.Event())
    before = set(asked)
    assert browser.get(f"/ui/jobs/{job}").status_code == 200
    assert asked == before
