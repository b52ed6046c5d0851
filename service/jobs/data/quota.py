"""How much of the disk one owner may take."""

from __future__ import annotations

from sqlalchemy.orm import Session

from service.db import Database
from service.jobs.errors import QuotaExceeded
from service.jobs.repository import holdings


def room(database: Database, owner: str, quota: int) -> int | None:
    """Bytes that the owner may still add; None where there is no limit."""
    if not quota:
        return None
    with database.snapshot() as session:
        return max(0, quota - holdings.bytes_of(session, owner, database.now()))


def check(session: Session, owner: str, quota: int, now: int, more: int = 0) -> None:
    """Raises QuotaExceeded where the owner, with what this transaction adds and `more` bytes, has more than allowed."""
    if quota:
        holdings.lock_owner(session, owner)
        session.flush()
        used = holdings.bytes_of(session, owner, now) + more
        if used > quota:
            raise exceeded(quota, used)


def exceeded(quota: int, used: int) -> QuotaExceeded:
    """`used`: at least so many bytes there would be."""
    return QuotaExceeded(
        f"You may have {quota} bytes of files, uploads, models and results, and with this you would have {used} or "
        "more: delete files or models, or cancel uploads, that you no longer need.",
        details={"bytes": used, "limit": quota},
    )
