"""Workers, for admins: what each has, what it does, and when it last gave a sign of life."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from allo_engine.source import code_version
from service.api import render
from service.api.context import Admin, Parts
from service.api.reading import reading
from service.pages.failures import wants_fragment
from service.pages.rendering import page

router = APIRouter(prefix="/workers")


@router.get("")
@reading
def index(request: Request, parts: Parts, _key: Admin) -> Response:
    """Those that live; for htmx the list alone, which it asks for again and again."""
    found = [render.worker(view) for view in parts.workers()]
    template = "workers_list.html" if wants_fragment(request) else "workers.html"
    return page(request, template, workers=found, now=parts.database.now(), code=code_version())
