"""Lists, as OpenAI's clients page through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query

from service.jobs.repository import Page

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


def listed(data: Sequence[dict[str, Any]], has_more: bool = False) -> dict[str, Any]:
    """A page of a list."""
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": has_more, **ends}
