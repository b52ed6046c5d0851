"""What several pages are made of: parts that htmx fetches, and pages of long lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from service.pages.failures import wants_fragment
from service.pages.rendering import page

Start = Annotated[int, Query(ge=0, le=10**9)]
"""The place in a list that its page begins with."""


def part(request: Request, template: str, headers: Mapping[str, str] | None = None, **values: Any) -> Response:
    """A part of a page where htmx asks, else a page of its own. Its template extends `frame`."""
    frame = "part.html" if wants_fragment(request) else "base.html"
    return page(request, template, headers=headers, frame=frame, **values)


def leads_to(request: Request, path: str, status_code: int = 200) -> Response:
    """Where the browser goes on once something was done."""
    if wants_fragment(request):
        return Response(status_code=status_code, headers={"hx-redirect": path})
    return RedirectResponse(path, 303)


def paging(start: int, at_once: int, total: int) -> dict[str, Any]:
    """For paging.html: where the pages before and behind this one begin, None where there is none."""
    behind = start + at_once
    return {
        "start": start,
        "at_once": at_once,
        "total": total,
        "before": max(start - at_once, 0) if start else None,
        "behind": behind if behind < total else None,
    }
