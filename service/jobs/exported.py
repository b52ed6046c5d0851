"""Queries about models in other forms."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.jobs.tables import Export


def export(session: Session, export_id: str) -> Export | None:
    return session.get(Export, export_id)


def exports(session: Session, owner: str, model: str) -> Sequence[Export]:
    """The owner's exports of a model, oldest first."""
    query = select(Export).where(Export.owner == owner, Export.model == model)
    return session.scalars(query.order_by(Export.created_at, Export.id)).all()


def drop_exports(session: Session, model: str) -> None:
    session.execute(delete(Export).where(Export.model == model))
