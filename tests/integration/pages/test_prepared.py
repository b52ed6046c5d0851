"""What the first who asks for a page would wait for is done before."""

from __future__ import annotations

from fastapi import FastAPI

from allo_engine.pipeline import METHODS
from service.pages import fields, rendering
from tests.apps import on_a_port
from tests.waiting import until


def test_a_process_makes_its_pages_ready_behind_its_start(app: FastAPI) -> None:
    made = (rendering.template, fields.shared_of, fields.stages_of)
    for one in made:
        one.cache_clear()
    with on_a_port(app):
        until(lambda: fields.shared_of.cache_info().currsize == len(METHODS))
    assert rendering.template.cache_info().currsize == len(list(rendering.TEMPLATES.glob("*.html")))
