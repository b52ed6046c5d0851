"""Queries that list models: those that somebody registered, and those that jobs made."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from service.jobs.repository import visible
from service.jobs.tables import Model


def registered_names(session: Session, owner: str, most: int) -> Sequence[str]:
    query = select(Model.id).where(visible(owner), Model.job_id.is_(None)).order_by(Model.id).limit(most)
    return session.scalars(query).all()


def registered_models(session: Session, owner: str, word: str, most: int) -> Sequence[Model]:
    """Those that somebody registered, and whose name holds the word."""
    query = select(Model).where(visible(owner), Model.job_id.is_(None), Model.id.icontains(word, autoescape=True))
    return session.scalars(query.order_by(Model.id).limit(most)).all()


def made_models(session: Session, owner: str, word: str, after: Model | None, most: int) -> Sequence[Model]:
    """Those that the owner's jobs made, the newest first, behind `after`."""
    query = select(Model).where(Model.owner == owner, Model.job_id.is_not(None))
    query = query.where(Model.id.icontains(word, autoescape=True))
    if after is not None:
        query = query.where(tuple_(Model.created_at, Model.id) < tuple_(after.created_at, after.id))
    return session.scalars(query.order_by(Model.created_at.desc(), Model.id.desc()).limit(most)).all()


def made_names(session: Session, owner: str, most: int) -> Sequence[str]:
    """The newest first."""
    query = select(Model.id).where(Model.owner == owner, Model.job_id.is_not(None))
    return session.scalars(query.order_by(Model.created_at.desc(), Model.id).limit(most)).all()
