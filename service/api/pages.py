"""Lists, as OpenAI's clients page through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query

from service.jobs.repository import Page, unknown_place

Order = Literal["asc", "desc"]


async def _page(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Order = "desc",
) -> Page:
    return Page(limit, after, order)


async def _long_page(
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Order = "desc",
) -> Page:
    return Page(limit, after, order)


Paging = Annotated[Page, Depends(_page)]
LongPaging = Annotated[Page, Depends(_long_page)]


def page_of(found: Sequence[dict[str, Any]], page: Page) -> dict[str, Any]:
    """A page of a list that is at hand, newest first. Raises NotFound for an unknown `page.after`."""
    ordered = found if page.order == "desc" else found[::-1]
    ids = [one["id"] for one in ordered]
    if page.after is not None and page.after not in ids:
        raise unknown_place(page.after)
    start = 0 if page.after is None else ids.index(page.after) + 1
    return listed(ordered[start : start + page.limit], len(ordered) > start + page.limit)


def listed(data: Sequence[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    """A page of a list."""
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": has_more, **ends}
