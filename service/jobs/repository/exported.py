"""Queries about models in other forms."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.jobs.tables import Export


def export(session: Session, export_id: str) -> Export | None:
    return session.get(Export, export_id)


def exports(session: Session, owner: str, model: str) -> Sequence[Export]:
    """The owner's exports of a model, oldest first."""
    query = select(Export).where(Export.owner == owner, Export.model == model)
    return session.scalars(query.order_by(Export.created_at, Export.id)).all()


def oldest(session: Session, statuses: Sequence[str]) -> Export | None:
    query = select(Export).where(Export.status.in_(statuses)).order_by(Export.created_at, Export.id)
    return session.scalars(query.limit(1).with_for_update()).first()


def count(session: Session, owner: str, statuses: Sequence[str]) -> int:
    query = select(func.count()).select_from(Export).where(Export.owner == owner, Export.status.in_(statuses))
    return session.scalar(query) or 0


def drop_exports(session: Session, model: str) -> None:
    session.execute(delete(Export).where(Export.model == model))
