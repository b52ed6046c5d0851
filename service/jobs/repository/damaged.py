"""Queries about the reading of what is stored, and what was found damaged."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from service.jobs.tables import Damage, Scrub

_THE_ONE = 1


def scrub(session: Session, now: int) -> Scrub:
    """How far the reading has come; it begins with the first who asks."""
    found = session.get(Scrub, _THE_ONE)
    if found is None:
        found = Scrub(id=_THE_ONE, place="", began_at=now, looked_at=now, contents=0, bytes=0, rounds=0)
        session.add(found)
    return found


def last_scrub(session: Session) -> Scrub | None:
    """The same; None before the first."""
    return session.get(Scrub, _THE_ONE)


def note(session: Session, read: Scrub, contents: int, size: int, now: int, ended: bool) -> None:
    """Notes what a look has read, up to `read.place`; with the last content another round begins."""
    read = session.merge(read)
    read.contents, read.bytes, read.looked_at = read.contents + contents, read.bytes + size, now
    if ended:
        read.place, read.began_at, read.rounds = "", now, read.rounds + 1


def damages(session: Session) -> Sequence[Damage]:
    return session.scalars(select(Damage).order_by(Damage.found_at, Damage.id)).all()


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Damage)) or 0


def noted(session: Session, sha256: str) -> bool:
    return session.get(Damage, sha256) is not None


def forget(session: Session, ids: Sequence[str]) -> None:
    session.execute(delete(Damage).where(Damage.id.in_(ids)))
