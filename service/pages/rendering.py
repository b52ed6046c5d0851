"""Templates, filled in. Everything that is put into one is escaped, and a name that a template does not get is an
error."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from service.api.guard import PAGES
from service.pages import assets, words

if TYPE_CHECKING:
    from jinja2 import Environment, Template

TEMPLATES = Path(__file__).parent / "templates"

NAVIGATION = (
    ("Jobs", f"{PAGES}/jobs", "read"),
    ("New job", f"{PAGES}/new", "submit"),
    ("Compare", f"{PAGES}/compare", "read"),
    ("Data", f"{PAGES}/files", "read"),
    ("Models", f"{PAGES}/models", "read"),
    ("Try", f"{PAGES}/try", "read"),
    ("Usage", f"{PAGES}/usage", "read"),
    ("Workers", f"{PAGES}/workers", "admin"),
    ("Keys", f"{PAGES}/keys", "admin"),
)
"""The entries of the menu: their names, where they lead, and the scope that one needs to see them."""


def page(
    request: Request, template: str, status_code: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """A page, or a part of one, as this request's sender sees it."""
    return HTMLResponse(render(request, template, **values), status_code, headers=dict(headers or {}))


def render(request: Request, name: str, /, **values: Any) -> str:
    """The same, as text."""
    session = getattr(request.state, "session", None)
    scopes = session.key.scopes if session else ()
    may = {scope: scope in scopes or "admin" in scopes for scope in ("read", "submit", "admin")}
    entries = [(name, path, _is_at(request, path)) for name, path, scope in NAVIGATION if session and may[scope]]
    return template(name).render(here=here(request), session=session, may=may, navigation=entries, **values)


@cache
def template(name: str) -> Template:
    """Read and compiled when it is first asked for."""
    return _environment().get_template(name)


def here(request: Request) -> str:
    """The address of this page, as a link of it has it."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _is_at(request: Request, path: str) -> bool:
    return request.url.path == path or request.url.path.startswith(f"{path}/")


@cache
def _environment() -> Environment:
    import jinja2  # here: the API starts without it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.globals |= {"asset": assets.address, "ui": PAGES}
    environment.filters |= words.FILTERS
    return environment
