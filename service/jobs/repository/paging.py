"""Lists, a page at a time."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.db import Base
from service.jobs.errors import NotFound
from service.jobs.ids import is_id

Row = TypeVar("Row", bound=Base)
Found = TypeVar("Found")


@dataclass(frozen=True)
class Page:
    """Which part of a list: what comes after the row `after`, in the order of ids."""

    limit: int = 20
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"


def paged(
    session: Session, query: Select[Row], column: InstrumentedAttribute[Any], kind: str, page: Page
) -> tuple[list[Row], bool]:
    """One page in the order of `column`, and whether there is more.

    `page.after` is the id of a row. Raises NotFound for what is none; in the order of ids, one of the `kind` that was
    deleted meanwhile has its place still.
    """
    return split(session.scalars(part(session, query, column, kind, page)).all(), page)


def part(
    session: Session, query: Select[Found], column: InstrumentedAttribute[Any], kind: str, page: Page
) -> Select[Found]:
    """The page, and one row more than wanted: that tells whether there is more."""
    down, rows = page.order == "desc", query
    if page.after is not None:
        place = _place(session, query, column, kind, page.after)
        rows = rows.where(column < place if down else column > place)
    return rows.order_by(column.desc() if down else column).limit(page.limit + 1)


def split(found: Sequence[Found], page: Page) -> tuple[list[Found], bool]:
    """The page of what was found of it, and whether there is more."""
    return list(found[: page.limit]), len(found) > page.limit


def columns_of(table: type[Base], *but: str) -> Select[Any]:
    """The columns of a table but these."""
    return select(*(column for column in table.__table__.columns if column.name not in but))


def plain(session: Session, query: Select[Any]) -> list[Any]:
    """What a query of columns finds, as tuples that know their columns' names. Thousands of rows are read so in half of
    the time that as many objects take, which would be watched for changes; SQLAlchemy's own rows look each name up."""
    found = session.execute(query)
    return list(map(_named(tuple(found.keys()))._make, found.all()))


@cache
def _named(names: tuple[str, ...]) -> Any:
    return namedtuple("Plain", names)


def unknown_place(after: str) -> NotFound:
    """What a list says of an `after` that is none of its ids."""
    return NotFound(f"Nothing of this list is called {after!r:.70}: there is no going on after it.", "after")


def _place(session: Session, query: Select[Any], column: InstrumentedAttribute[Any], kind: str, after: str) -> Any:
    ids = column.class_.id
    if column is ids and is_id(kind, after):
        return after
    place = session.scalar(query.where(ids == after).with_only_columns(column))
    if place is None:
        raise unknown_place(after)
    return place
